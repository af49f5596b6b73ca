//! Candidates that boot a kernel: AppPot, and the floor below it.

use std::ffi::OsString;

use anyhow::Result;

use crate::lab::{Kernel, Lab};
use crate::process::Ended;
use crate::process::Run;
use crate::rounds::{Candidate, Readings, CPU, WALL};

/// A command that is timed.
pub(crate) struct Timed {
    name: String,
    run: Run,
}

impl Timed {
    /// Times `run`, which must succeed.
    pub(crate) fn boxed(name: impl Into<String>, run: Run) -> Box<dyn Candidate> {
        Box::new(Timed {
            name: name.into(),
            run,
        })
    }
}

impl Candidate for Timed {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn turn(&mut self) -> Result<Readings> {
        Ok(readings(&self.run.succeed()?))
    }
}

fn readings(ended: &Ended) -> Readings {
    vec![(WALL, ended.millis()), (CPU, ended.cpu.as_secs_f64() * 1e3)]
}

/// A kernel that boots a trivial static init from a directory, by hand, as fast as it can: the
/// arguments that matter are those of the launcher, and it is bound to one CPU.
pub(crate) struct Floor {
    name: String,
    run: Run,
    cpus: usize,
    turns: usize,
}

impl Floor {
    /// The floor of `kernel` with so much memory.
    pub(crate) fn boxed(lab: &Lab, kernel: &Kernel, memory_mib: u32) -> Box<dyn Candidate> {
        let mut root = OsString::from("rootflags=");
        root.push(&lab.floor);
        let mut run = lab
            .command([&kernel.path])
            .args([
                format!("mem={memory_mib}M"),
                format!("lpj={}", loops_per_tick()),
            ])
            .args(["quiet", "noreboot", "con=null", "ssl=null"])
            .args(["uml_dir=/proc/", "umid=none"])
            .args(["root=/dev/root", "rootfstype=hostfs", "ro", "init=/init"])
            .args([root])
            .var("TMPDIR", "/dev/shm");
        if kernel.own {
            run = run.args(["seccomp=on"]);
        }
        Box::new(Floor {
            name: floor_name(kernel),
            run,
            cpus: lab.cpus,
            turns: 0,
        })
    }
}

/// What a kernel's floor is called.
pub(crate) fn floor_name(kernel: &Kernel) -> String {
    format!("floor, {}", kernel.name)
}

/// What AppPot with a kernel and an appliance is called.
pub(crate) fn apppot_name(kernel: &Kernel, appliance: &str) -> String {
    format!("AppPot, {}, {appliance}", kernel.name)
}

impl Candidate for Floor {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn turn(&mut self) -> Result<Readings> {
        self.turns += 1;
        self.run.cpu = Some(self.turns % self.cpus);
        Ok(readings(&self.run.succeed()?))
    }
}

/// What the launcher computes as well: without it the kernel measures for 90 ms how fast it is.
fn loops_per_tick() -> u64 {
    const WHEN_UNKNOWN: u64 = 20_000_000;
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let bogomips = text
        .lines()
        .find_map(|line| line.strip_prefix("bogomips")?.split(':').nth(1))
        .and_then(|value| value.trim().parse::<f64>().ok());
    bogomips.map_or(WHEN_UNKNOWN, |value| (value * 5000.0) as u64)
}
