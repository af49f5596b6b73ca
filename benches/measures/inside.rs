//! Inside the guest against the host.

use anyhow::{Context, Result};

use super::start::HOST;
use super::Measure;
use crate::lab::Lab;
use crate::process::Run;
use crate::rounds::{Candidate, Plan, Race, Readings};
use crate::sheet::{cell, short, Better, Sheet};
use crate::uml::apppot_name;

/// What the probe prints, what it is, and in what.
const READINGS: [(&str, &str, &str); 11] = [
    ("syscall", "system call (getppid)", "µs"),
    ("fault", "first touch of a page of 4 KiB", "µs"),
    ("process", "fork + exec + wait", "µs"),
    ("compute", "computing, one thread", "ms"),
    ("compile", "gcc -O2 of stb_truetype.h", "ms"),
    ("create", "create a file of 100 bytes", "µs"),
    ("stat", "stat such a file", "µs"),
    ("read-small", "read such a file", "µs"),
    ("unlink", "remove such a file", "µs"),
    (
        "read",
        "read a file of 256 MB, cold cache in the guest",
        "MB/s",
    ),
    ("write", "write a file of 128 MB, with fsync", "MB/s"),
];

/// What the host is called.
const NATIVE: &str = "host";

/// Most that computing may cost.
const COMPUTE_GOAL: f64 = 1.02;

const ABOUT: &str = "The same static program in the guest (host appliance) and on the host, one \
machine after the other. The job directory is in the host's memory, so no disk is measured. Times \
are the program's own. Every round boots anew, so the guest's caches are cold when it compiles \
(stb_truetype.h as Debian's libstb-dev has it) and reads.";

/// See the module.
pub(super) struct Inside;

impl Measure for Inside {
    fn name(&self) -> &'static str {
        "inside the guest"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let large = lab.fast_jobdir.join("large0");
        std::fs::write(&large, vec![b'x'; 256_000_000])?;
        let race = Race::run(candidates(lab), Plan::rounds(lab.rounds(6)));
        std::fs::remove_file(&large)?;
        let mut head = vec![String::new(), format!("{NATIVE}: median (quartiles)")];
        for kernel in &lab.kernels {
            head.push(kernel.name.to_owned());
            head.push(String::from("÷ host"));
        }
        let mut sheet = Sheet {
            head,
            ..Sheet::new("inside", "Inside the guest, against the host", ABOUT, &[])
        };
        for (name, title, unit) in READINGS {
            row(&mut sheet, lab, &race, (name, title, unit));
        }
        if lab.source.is_none() {
            sheet
                .missing
                .push(String::from("compile: libstb-dev is not installed"));
        }
        sheet.keep("probe", race);
        Ok(sheet)
    }
}

fn candidates(lab: &Lab) -> Vec<Box<dyn Candidate>> {
    let probe = |run: Run| {
        let source = lab.source.as_deref().unwrap_or("".as_ref());
        run.args([&lab.probe])
            .args(["inside"])
            .args([&lab.fast_jobdir])
            .args([source])
            .within(&lab.fast_jobdir)
    };
    let native: Run = probe(lab.command::<&str>([]));
    let mut candidates: Vec<Box<dyn Candidate>> = vec![Box::new(Probe {
        name: NATIVE.to_owned(),
        run: native,
    })];
    for kernel in &lab.kernels {
        candidates.push(Box::new(Probe {
            name: apppot_name(kernel, HOST),
            run: probe(lab.apppot_run(kernel).args(["--"])),
        }));
    }
    candidates
}

fn row(sheet: &mut Sheet, lab: &Lab, race: &Race, (name, title, unit): (&str, &str, &'static str)) {
    let mut cells = vec![format!("{title}, {unit}"), cell(race.summary(NATIVE, name))];
    for kernel in &lab.kernels {
        let lane = apppot_name(kernel, HOST);
        let ratio = race.ratio(&lane, NATIVE, name);
        cells.push(cell(race.summary(&lane, name)));
        cells.push(short(ratio, " ×"));
        let tag = if kernel.own { "own" } else { "debian" };
        let key = format!("{tag}.{name}");
        let title = format!("{title} ÷ host, {}", kernel.name);
        let better = match unit {
            "MB/s" => Better::More,
            _ => Better::Less,
        };
        let goal = (name == "compute" && kernel.own).then_some(COMPUTE_GOAL);
        sheet.figure((&key, &title), ratio, ("×", better), goal);
    }
    sheet.row(cells);
}

/// Runs the probe and reads what it prints.
struct Probe {
    name: String,
    run: Run,
}

impl Candidate for Probe {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn turn(&mut self) -> Result<Readings> {
        let text = self.run.succeed()?.text();
        text.lines().map(reading).collect()
    }
}

fn reading(line: &str) -> Result<(&'static str, f64)> {
    let unknown = || format!("the probe wrote '{line}'");
    let (name, value) = line.split_once(' ').with_context(unknown)?;
    let known = READINGS.iter().find(|(known, ..)| *known == name);
    let (known, ..) = known.with_context(unknown)?;
    Ok((known, value.parse().with_context(unknown)?))
}
