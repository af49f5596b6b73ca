//! The launcher's own cost.

use std::time::Duration;

use anyhow::{ensure, Result};

use super::phases::when_kernel_starts;
use super::start::HOST;
use super::tree::{self, Tree};
use super::Measure;
use crate::lab::{Kernel, Lab};
use crate::process::Run;
use crate::rounds::{Candidate, Plan, Race, Readings, WALL};
use crate::sheet::{cell, Better, Sheet};
use crate::uml::{apppot_name, Timed};

const VERSION: &str = "apppot --version";
const DRY_RUN: &str = "apppot run --dry-run -- true";

/// What is read while a machine sleeps, and what it is.
const READINGS: [(&str, &str, &str); 5] = [
    ("before", "until the kernel's process exists", "ms"),
    (
        "rss",
        "launcher's resident memory while a machine runs",
        "MB",
    ),
    ("pss", "launcher's proportional memory", "MB"),
    (
        "machine-pss",
        "the whole machine's proportional memory",
        "MB",
    ),
    ("processes", "its processes, the launcher's included", ""),
];

/// See the module.
pub(super) struct Launcher;

impl Measure for Launcher {
    fn name(&self) -> &'static str {
        "the launcher's own cost"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let kernel = lab.first_kernel();
        let idle = Resting::new(lab, kernel);
        let dry = lab.apppot_run(kernel).args(["--dry-run", "--", "true"]);
        let candidates = vec![
            Timed::boxed(VERSION, lab.command([&lab.apppot]).args(["--version"])),
            Timed::boxed(DRY_RUN, dry),
            Box::new(idle) as Box<dyn Candidate>,
        ];
        let race = Race::run(candidates, Plan::rounds(lab.rounds(10)));
        let about = format!(
            "The launcher without a machine, until it has started one, and while one sleeps ({}, {HOST}).",
            kernel.name
        );
        let head = ["", "median (quartiles)"];
        let mut sheet = Sheet::new("launcher", "The launcher's own cost", &about, &head);
        for name in [VERSION, DRY_RUN] {
            sheet.row([format!("`{name}`, ms"), cell(race.summary(name, WALL))]);
        }
        let name = apppot_name(kernel, HOST);
        for (reading, title, unit) in READINGS {
            let value = race.summary(&name, reading);
            let comma = if unit.is_empty() { "" } else { ", " };
            sheet.row([format!("{title}{comma}{unit}"), cell(value)]);
            sheet.figure((reading, title), value, (unit, Better::Less), None);
        }
        sheet.keep("launcher", race);
        Ok(sheet)
    }
}

/// A machine that sleeps until it has been looked at.
struct Resting {
    name: String,
    run: Run,
    kernel: Kernel,
}

impl Resting {
    fn new(lab: &Lab, kernel: &Kernel) -> Self {
        let mut run = lab.apppot_run(kernel);
        run = run.args(["--", "sh", "-c", "echo up; exec sleep 1000"]);
        run.listen = true;
        Resting {
            name: apppot_name(kernel, HOST),
            run,
            kernel: kernel.clone(),
        }
    }
}

impl Candidate for Resting {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn turn(&mut self) -> Result<Readings> {
        let mut running = self.run.start()?;
        let before = when_kernel_starts(&running, &self.kernel.path)?;
        let mut up = [0; 3];
        if let Some(pipe) = &mut running.child.stdout {
            std::io::Read::read_exact(pipe, &mut up)?;
        }
        ensure!(&up == b"up\n", "it did not come up");
        std::thread::sleep(Duration::from_millis(100));
        let launcher = tree::size(running.id());
        let pids = Tree::now().below(running.id());
        let machine = tree::sum(&pids);
        running.terminate()?;
        running.finish()?;
        Ok(vec![
            ("before", before.as_secs_f64() * 1e3),
            ("rss", launcher.resident),
            ("pss", launcher.proportional),
            ("machine-pss", machine.proportional),
            ("processes", pids.len() as f64),
        ])
    }
}
