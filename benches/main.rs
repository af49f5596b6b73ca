//! `make bench`: one program, one run, everything side by side.
//!
//! A [`measures::Measure`] lines up [`rounds::Candidate`]s, which take turns round by round, and
//! fills a [`sheet::Sheet`]. The sheets become a table, `docs/bench/` and a line of history. What a
//! machine does not have is said and left out; only a benchmark that cannot begin fails.

mod host;
mod lab;
mod measures;
mod peers;
mod process;
mod report;
mod rounds;
mod sheet;
mod stats;
mod uml;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::host::Host;
use crate::lab::Lab;
use crate::sheet::Sheet;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let start = Instant::now();
    let lab = Lab::open()?;
    let mut host = Host::now(&lab);
    warn(&host);
    let sheets = measure(&lab);
    host.load_after = host::load();
    print!("{}", report::table::goals(&sheets));
    publish(&host, &sheets)?;
    let seconds = start.elapsed().as_secs();
    println!(
        "\nload average {:.2} before, {:.2} after; {seconds} s",
        host.load_before, host.load_after
    );
    warn(&host);
    Ok(())
}

/// Writes `docs/bench/`, unless only a part was measured, and says what has become worse.
fn publish(host: &Host, sheets: &[Sheet]) -> Result<()> {
    let directory = match std::env::var_os("APPPOT_BENCH_OUTPUT") {
        Some(directory) => directory.into(),
        None if !chosen().is_empty() => return Ok(()),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench"),
    };
    for line in report::write(&directory, host, sheets)? {
        println!("REGRESSION  {line}");
    }
    println!("written to {}", directory.display());
    Ok(())
}

/// The part of measures' names that `BENCH_ONLY` asks for; empty: all.
fn chosen() -> String {
    std::env::var("BENCH_ONLY").unwrap_or_default()
}

/// Every measure that works; the others are said.
fn measure(lab: &Lab) -> Vec<Sheet> {
    let chosen = chosen();
    let mut sheets = Vec::new();
    for measure in measures::all() {
        if !measure.name().contains(&chosen) {
            continue;
        }
        eprintln!("measuring {} …", measure.name());
        match measure.measure(lab) {
            Ok(sheet) => {
                print!("{}", report::table::sheet(&sheet));
                sheets.push(sheet);
            }
            Err(error) => println!("\n{}: not measured: {error:#}", measure.name()),
        }
    }
    sheets
}

fn warn(host: &Host) {
    if let Some(warning) = host.warning() {
        eprintln!("warning: {warning}");
    }
}
