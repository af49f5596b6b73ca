//! Machines at once: time, correctness and memory.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};

use super::start::{HOST, IMAGE};
use super::tree::{self, Tree};
use super::Measure;
use crate::lab::Lab;
use crate::process::{Run, Running};
use crate::rounds::{Candidate, Plan, Race, Readings, WALL};
use crate::sheet::{cell, Better, Sheet};
use crate::stats::Summary;

const CROWDS: [usize; 5] = [1, 2, 8, 32, 100];

/// A crowd that is not up by then will not be.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
pub(super) struct Crowd;

impl Measure for Crowd {
    fn name(&self) -> &'static str {
        "machines at once"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let kernel = lab.first_kernel();
        let mut run = lab.apppot_run(kernel);
        let appliance = lab.image.as_ref().map_or(HOST, |_| IMAGE);
        if let Some(image) = &lab.image {
            run = run.args(["--image"]).args([image]);
        }
        let mut sheet = Sheet::new(
            "crowd",
            "Machines at once",
            &format!(
                "So many `apppot run` at once on one appliance ({appliance}, {}, 2 GiB each) on {} CPUs: \
                 each prints its number, which is checked, and ends. Then so many that sleep: the \
                 proportional memory (PSS) of all their processes, launchers included, and the \
                 resident memory (RSS) that counts what is shared again and again.",
                kernel.name, lab.cpus
            ),
            &["machines", "all done, s", "s per machine", "right", "PSS per idle machine, MB", "RSS, MB"],
        );
        let crowds = match lab.quick {
            true => &CROWDS[..4],
            false => &CROWDS,
        };
        for &size in crowds {
            one_size(&mut sheet, lab, &run, size);
        }
        Ok(sheet)
    }
}

/// Fills the row of crowds of `size`.
fn one_size(sheet: &mut Sheet, lab: &Lab, run: &Run, size: usize) {
    let rounds = match size {
        0..=8 => lab.rounds(10),
        _ => 3,
    };
    let plan = Plan {
        warm_up: usize::from(size < 8),
        ..Plan::rounds(rounds)
    };
    let busy: Box<dyn Candidate> = Box::new(Busy {
        run: run.clone(),
        size,
    });
    let race = Race::run(vec![busy], plan);
    let idle: Box<dyn Candidate> = Box::new(Idle {
        run: run.clone(),
        size,
    });
    let rest = Race::run(
        vec![idle],
        Plan {
            warm_up: 0,
            ..Plan::rounds(1)
        },
    );
    let read = |race: &Race, name| race.lanes.first().and_then(|lane| lane.summary(name));
    let (wall, right) = (read(&race, WALL), read(&race, "right"));
    let (pss, rss) = (read(&rest, "pss"), read(&rest, "rss"));
    let each = wall.map(|it| it.scaled(1.0 / size as f64));
    let counted = right.map(|it| format!("{} of {size}", it.low.floor()));
    let median =
        |it: Option<Summary>| it.map_or(String::from("–"), |it| crate::stats::digits(it.median));
    sheet.row([
        size.to_string(),
        cell(wall),
        median(each),
        counted.unwrap_or_else(|| String::from("–")),
        median(pss),
        median(rss),
    ]);
    let names = (
        &*format!("{size}-pss-mb"),
        &*format!("memory per idle machine, {size} at once"),
    );
    let goal = (size == 100).then_some(30.0);
    sheet.figure(names, pss, ("MB", Better::Less), goal);
    let names = (
        &*format!("{size}-seconds"),
        &*format!("{size} machines at once, all done"),
    );
    sheet.figure(names, wall, ("s", Better::Less), None);
    let names = (
        &*format!("{size}-right"),
        &*format!("{size} machines at once, right outputs"),
    );
    sheet.figure(names, right, ("", Better::More), Some(size as f64));
    sheet.keep(format!("{size} at once"), race);
    sheet.keep(format!("{size} idle"), rest);
}

/// Machines that print their number and end.
struct Busy {
    run: Run,
    size: usize,
}

impl Candidate for Busy {
    fn name(&self) -> String {
        format!("{} machines", self.size)
    }

    fn turn(&mut self) -> Result<Readings> {
        let start = Instant::now();
        let crowd = gather(&self.run, self.size, "echo machine $0")?;
        let ended: Vec<_> = crowd.into_iter().map(Running::finish).collect();
        let wall = start.elapsed();
        let right = ended.into_iter().enumerate().filter(|(number, ended)| {
            let expected = format!("machine {number}\n");
            ended
                .as_ref()
                .is_ok_and(|it| it.status.success() && it.text() == expected)
        });
        Ok(vec![
            (WALL, wall.as_secs_f64()),
            ("right", right.count() as f64),
        ])
    }
}

/// Machines that sleep while their memory is looked at.
struct Idle {
    run: Run,
    size: usize,
}

impl Candidate for Idle {
    fn name(&self) -> String {
        format!("{} idle machines", self.size)
    }

    fn turn(&mut self) -> Result<Readings> {
        let mut crowd = gather(&self.run, self.size, "echo up $0; exec sleep 1000")?;
        wait_until_up(&mut crowd)?;
        // What the start has stirred up settles.
        std::thread::sleep(Duration::from_millis(500));
        let tree = Tree::now();
        let pids: Vec<u32> = crowd.iter().flat_map(|it| tree.below(it.id())).collect();
        let total = tree::sum(&pids);
        ensure!(total.proportional > 0.0, "their memory cannot be looked at");
        for machine in &crowd {
            machine.terminate()?;
        }
        for machine in crowd {
            machine.finish()?;
        }
        let size = self.size as f64;
        Ok(vec![
            ("pss", total.proportional / size),
            ("rss", total.resident / size),
            ("processes", pids.len() as f64 / size),
        ])
    }
}

/// Starts machines; the script gets its number as `$0`.
fn gather(run: &Run, size: usize, script: &str) -> Result<Vec<Running>> {
    (0..size)
        .map(|number| {
            let number = number.to_string();
            run.clone()
                .args(["--", "sh", "-c", script, &number])
                .start()
        })
        .collect()
}

fn wait_until_up(crowd: &mut [Running]) -> Result<()> {
    let start = Instant::now();
    for (number, machine) in crowd.iter_mut().enumerate() {
        while machine.output() != format!("up {number}\n").as_bytes() {
            if let Some(status) = machine.child.try_wait()? {
                bail!("machine {number} ended early: {status}");
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "machine {number} did not come up"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
