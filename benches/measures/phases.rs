//! Where the time of one `true` goes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::start::{HOST, IMAGE};
use super::Measure;
use crate::lab::{Kernel, Lab};
use crate::process::{Run, Running};
use crate::rounds::{Candidate, Plan, Race, Readings, WALL};
use crate::sheet::{cell, Better, Sheet};
use crate::uml::apppot_name;

const ABOUT: &str = "Milliseconds of each phase of `apppot run -- echo`. Seen from outside: when the \
kernel's process exists (looked for every 50 µs), when the first byte of output arrives, and the end; \
from the launcher's report: when the agent says hello, and how long the command took.";

/// Phases, in their order, and what they are.
const PHASES: [(&str, &str); 5] = [
    ("launcher", "launcher until the kernel's process"),
    ("kernel", "kernel until the agent's hello"),
    ("agent", "agent until the command's output is here"),
    ("end", "the command's end, report, power-off, cleaning up"),
    (WALL, "in all"),
];

/// See the module.
pub(super) struct Phases;

impl Measure for Phases {
    fn name(&self) -> &'static str {
        "phases of one run"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let mut candidates: Vec<Box<dyn Candidate>> = Vec::new();
        for kernel in &lab.kernels {
            candidates.push(Box::new(Phased::new(lab, kernel, HOST)));
            if kernel.own && lab.image.is_some() {
                candidates.push(Box::new(Phased::new(lab, kernel, IMAGE)));
            }
        }
        let plan = Plan {
            warm_up: 1,
            rounds: lab.rounds(20),
            patience: Duration::from_millis(500),
        };
        let race = Race::run(candidates, plan);
        let names = race.lanes.iter().map(|lane| lane.name.clone());
        let head = std::iter::once(String::from("phase, ms"))
            .chain(names)
            .collect();
        let mut sheet = Sheet {
            head,
            ..Sheet::new("phases", "Where the time of one run goes", ABOUT, &[])
        };
        let command = (
            "command",
            "of these, the command itself (the agent's account)",
        );
        for (phase, title) in PHASES.into_iter().chain([command]) {
            let cells = race.lanes.iter().map(|lane| cell(lane.summary(phase)));
            sheet.row(std::iter::once(title.to_owned()).chain(cells));
            let first = race.lanes.first().and_then(|lane| lane.summary(phase));
            let title = format!("phase: {title}");
            sheet.figure((phase, &title), first, ("ms", Better::Less), None);
        }
        sheet.keep("phases", race);
        Ok(sheet)
    }
}

/// One run, looked at from outside.
struct Phased {
    name: String,
    run: Run,
    kernel: PathBuf,
    report: PathBuf,
}

impl Phased {
    fn new(lab: &Lab, kernel: &Kernel, appliance: &str) -> Self {
        let report = lab.jobdir.join("report.json");
        let mut run = lab.apppot_run(kernel).args(["--report"]).args([&report]);
        if let Some(image) = lab.image.as_ref().filter(|_| appliance == IMAGE) {
            run = run.args(["--image"]).args([image]);
        }
        run.listen = true;
        Phased {
            name: apppot_name(kernel, appliance),
            run: run.args(["--", "echo", "x"]),
            kernel: kernel.path.clone(),
            report,
        }
    }
}

impl Candidate for Phased {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn turn(&mut self) -> Result<Readings> {
        let mut running = self.run.start()?;
        let launcher = when_kernel_starts(&running, &self.kernel)?;
        let mut pipe = running.child.stdout.take().context("no pipe")?;
        pipe.read_exact(&mut [0])?;
        let output = running.start.elapsed();
        let wall = running.finish()?.success()?.millis();
        let report: Value = serde_json::from_slice(&std::fs::read(&self.report)?)?;
        // The launcher's clock starts and ends a little inside of ours.
        let total = report["total-ms"].as_f64().context("no total-ms")?;
        let hello = report["boot-ms"].as_f64().context("no boot-ms")? + (wall - total) / 2.0;
        let elapsed = &report["job"]["usage"]["elapsed-ms"];
        let command = elapsed.as_f64().context("no elapsed")?;
        let (launcher, output) = (millis(launcher), millis(output));
        Ok(vec![
            ("launcher", launcher),
            ("kernel", hello - launcher),
            ("agent", output - hello),
            ("end", wall - output),
            ("command", command),
            (WALL, wall),
        ])
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Looks for the guest's kernel among the launcher's children, and says when it was there.
pub(super) fn when_kernel_starts(launcher: &Running, kernel: &Path) -> Result<Duration> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let children = format!("/proc/{0}/task/{0}/children", launcher.id());
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let list = std::fs::read_to_string(&children).unwrap_or_default();
        let seen = launcher.start.elapsed();
        if list.split_whitespace().any(|pid| is_guest(pid, kernel)) {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    anyhow::bail!("no process of the kernel was seen")
}

/// Whether the process runs the kernel with a guest in it, and not only to ask it something.
fn is_guest(pid: &str, kernel: &Path) -> bool {
    let process = Path::new("/proc").join(pid);
    let is_kernel = std::fs::read_link(process.join("exe")).is_ok_and(|exe| exe == kernel);
    let command_line = || std::fs::read(process.join("cmdline")).unwrap_or_default();
    is_kernel
        && command_line()
            .split(|&byte| byte == 0)
            .any(|word| word.starts_with(b"mem="))
}
