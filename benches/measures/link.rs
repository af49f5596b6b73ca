//! Throughput of the standard streams.

use std::io::{Read, Write};
use std::time::Instant;

use anyhow::{ensure, Context, Result};

use super::start::HOST;
use super::Measure;
use crate::lab::Lab;
use crate::process::Run;
use crate::rounds::{Candidate, Plan, Race, Readings};
use crate::sheet::{cell, Better, Sheet};
use crate::uml::apppot_name;

/// How much goes through, MiB.
const MIB: usize = 256;

const NATIVE: &str = "a pipe on the host";

/// What standard input must carry, MB/s.
const INPUT_GOAL: f64 = 100.0;

/// See the module.
pub(super) struct Link;

impl Measure for Link {
    fn name(&self) -> &'static str {
        "throughput of standard input and output"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let mut candidates: Vec<Box<dyn Candidate>> = vec![Box::new(Streams {
            name: NATIVE.to_owned(),
            run: lab.command::<&str>([]).args([&lab.probe]),
        })];
        for kernel in &lab.kernels {
            candidates.push(Box::new(Streams {
                name: apppot_name(kernel, HOST),
                run: lab.apppot_run(kernel).args(["--"]).args([&lab.probe]),
            }));
        }
        let race = Race::run(candidates, Plan::rounds(lab.rounds(5)));
        let about = format!(
            "{MIB} MiB through a pipe into a program that only reads, and out of one that only writes; \
             from the first byte to the end, so the boot does not count."
        );
        let head = ["", "in, MB/s", "out, MB/s"];
        let mut sheet = Sheet::new("link", "Standard input and output", &about, &head);
        for lane in &race.lanes {
            let (sink, source) = (lane.summary("in"), lane.summary("out"));
            sheet.row([lane.name.clone(), cell(sink), cell(source)]);
        }
        for kernel in &lab.kernels {
            let name = apppot_name(kernel, HOST);
            let tag = if kernel.own { "own" } else { "debian" };
            for (direction, goal) in [("in", Some(INPUT_GOAL)), ("out", None)] {
                let key = format!("{tag}.{direction}");
                let title = format!("standard streams, {direction}, {}", kernel.name);
                let value = race.summary(&name, direction);
                sheet.figure((&key, &title), value, ("MB/s", Better::More), goal);
            }
        }
        sheet.keep("streams", race);
        Ok(sheet)
    }
}

/// The probe as the end, and then as the beginning of a pipe.
pub(super) struct Streams {
    pub(super) name: String,
    pub(super) run: Run,
}

impl Candidate for Streams {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn turn(&mut self) -> Result<Readings> {
        Ok(vec![("in", feed(&self.run)?), ("out", listen(&self.run)?)])
    }
}

/// MB/s, as the reader in the guest says.
fn feed(run: &Run) -> Result<f64> {
    let mut run = run.clone().args(["sink"]);
    run.feed = true;
    let mut running = run.start()?;
    let mut pipe = running.child.stdin.take().context("no pipe")?;
    let block = vec![b'x'; 1 << 20];
    // A reader that has gone is seen by its exit status.
    let _ = (0..MIB).try_for_each(|_| pipe.write_all(&block));
    drop(pipe);
    let text = running.finish()?.success()?.text();
    let rate = text
        .trim()
        .strip_prefix("sink ")
        .and_then(|it| it.parse().ok());
    rate.with_context(|| format!("the probe wrote '{}'", text.trim()))
}

/// MB/s, as the reader on the host sees it.
fn listen(run: &Run) -> Result<f64> {
    let mut run = run.clone().args(["source", &MIB.to_string()]);
    run.listen = true;
    let mut running = run.start()?;
    let mut pipe = running.child.stdout.take().context("no pipe")?;
    let mut block = vec![0; 1 << 20];
    let (mut total, mut start) = (0, None);
    loop {
        let got = pipe.read(&mut block)?;
        let start = *start.get_or_insert_with(Instant::now);
        total += got;
        if got == 0 {
            let seconds = start.elapsed().as_secs_f64();
            running.finish()?.success()?;
            ensure!(total == MIB << 20, "{total} bytes of {MIB} MiB arrived");
            return Ok(total as f64 / seconds / 1e6);
        }
    }
}
