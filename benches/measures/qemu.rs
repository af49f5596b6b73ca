//! Machines of QEMU: start to finish of `true`, beside a command written by hand, and the link.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::link::Streams;
use super::Measure;
use crate::lab::Lab;
use crate::process::Run;
use crate::rounds::{Candidate, Plan, Race, WALL};
use crate::sheet::{cell, short, Better, Sheet};
use crate::uml::Timed;

const APPPOT: &str = "AppPot, QEMU, host appliance";
const FLOOR: &str = "QEMU by hand";

const ABOUT: &str = "Wall time of the whole process. By hand, QEMU gets the same machine, processor, memory \
and kernel, and an initramfs with nothing but a static init that powers off at once: no disk, no directory, no \
module, no link. What executes the guest is what AppPot chooses, KVM or QEMU's translator.";

/// See the module.
pub(super) struct Start;

impl Measure for Start {
    fn name(&self) -> &'static str {
        "start to finish of true with QEMU"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let kernel = kernel(lab)?;
        let run = apppot(lab, &kernel).args(["--", "true"]);
        let candidates = vec![Timed::boxed(APPPOT, run), floor(lab, &kernel)?];
        let race = Race::run(candidates, Plan::rounds(lab.rounds(10)));
        let head = ["", "ms: median (quartiles)", "÷ by hand"];
        let mut sheet = Sheet::new("qemu", "Start to finish of `true` with QEMU", ABOUT, &head);
        for lane in &race.lanes {
            let ratio = race.ratio(&lane.name, FLOOR, WALL);
            sheet.row([
                lane.name.clone(),
                cell(lane.summary(WALL)),
                short(ratio, " ×"),
            ]);
        }
        let names = ("floor", "`apppot run -- true` ÷ QEMU by hand");
        let ratio = race.ratio(APPPOT, FLOOR, WALL);
        sheet.figure(names, ratio, ("×", Better::Less), Some(1.25));
        let names = ("ms", "`apppot run -- true` with QEMU");
        let time = race.summary(APPPOT, WALL);
        sheet.figure(names, time, ("ms", Better::Less), Some(4000.0));
        sheet.keep("true", race);
        Ok(sheet)
    }
}

/// What the link must carry, MB/s.
const LINK_GOAL: f64 = 100.0;

/// The standard streams.
pub(super) struct Link;

impl Measure for Link {
    fn name(&self) -> &'static str {
        "throughput of standard input and output with QEMU"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let run = apppot(lab, &kernel(lab)?).args(["--"]).args([&lab.probe]);
        let candidate = Streams {
            name: APPPOT.to_owned(),
            run,
        };
        let race = Race::run(vec![Box::new(candidate)], Plan::rounds(lab.rounds(5)));
        let about = "As above, by a virtio-serial port; standard input by a ring that the guest reads as a disk.";
        let head = ["", "in, MB/s", "out, MB/s"];
        let mut sheet = Sheet::new("qemu-link", "Standard streams with QEMU", about, &head);
        let (sink, source) = (race.summary(APPPOT, "in"), race.summary(APPPOT, "out"));
        sheet.row([APPPOT.to_owned(), cell(sink), cell(source)]);
        let unit = ("MB/s", Better::More);
        sheet.figure(("in", "QEMU, in"), sink, unit, Some(LINK_GOAL));
        sheet.figure(("out", "QEMU, out"), source, unit, Some(LINK_GOAL));
        sheet.keep("streams", race);
        Ok(sheet)
    }
}

fn kernel(lab: &Lab) -> Result<PathBuf> {
    let kernel = lab.qemu_kernel.clone();
    kernel.context("there is no kernel for QEMU, or no QEMU")
}

/// `apppot run` with QEMU, to be completed with `--` and a command.
fn apppot(lab: &Lab, kernel: &PathBuf) -> Run {
    lab.command([&lab.apppot])
        .args(["run", "--quiet", "--backend", "qemu", "--kernel"])
        .args([kernel])
}

/// QEMU as AppPot starts it, less everything that a kernel does not need to start.
fn floor(lab: &Lab, kernel: &PathBuf) -> Result<Box<dyn Candidate>> {
    let shown = apppot(lab, kernel).args(["--dry-run", "--json", "--", "true"]);
    let shown = shown.succeed()?.text();
    let rendered: serde_json::Value = serde_json::from_str(&shown).context("--dry-run --json")?;
    let argv = rendered["argv"].as_array().context("no argv")?;
    let argv: Vec<&str> = argv.iter().filter_map(|word| word.as_str()).collect();
    let value = |name: &str| {
        let at = argv.iter().position(|word| *word == name);
        let value = at.and_then(|at| argv.get(at + 1));
        value.with_context(|| format!("QEMU is started without {name}"))
    };
    let words = value("-append")?.split(' ');
    let words: Vec<&str> = words.filter(|word| !word.starts_with("apppot.")).collect();
    let mut run = lab.command([argv[0]]);
    run = run.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    for name in ["-machine", "-cpu", "-smp", "-m"] {
        run = run.args([name, value(name)?]);
    }
    run = run.args(["-no-reboot", "-append", &words.join(" ")]);
    run = run.args(["-serial", "null", "-kernel"]).args([kernel]);
    run = run.args(["-initrd"]).args([lab.work.join("floor.cpio")]);
    Ok(Timed::boxed(FLOOR, run))
}
