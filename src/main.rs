//! `apppot`: run a command inside a software appliance as if it were an ordinary program.

mod batch;
mod caller;
mod cli;
mod cloud;
mod config;
mod doctor;
mod failure;
mod files;
mod image;
mod outcome;
mod output;
mod progress;
mod run;
mod session;
mod signature;
mod snap;
mod staging;
mod trust;
mod units;

use std::process::ExitCode;

use anyhow::Result;
use apppot_backends::uml::kernel;
use apppot_contract::Workload;
use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command, General};
use crate::config::{Config, Origin, Values};

fn main() -> ExitCode {
    // A parent that ignores it would have our children vanish unwaited for.
    // SAFETY: the default action needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let cli = Cli::parse();
    let general = cli.general.clone();
    match dispatch(cli.command, &general) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            failure::print(&error, general.json);
            ExitCode::from(outcome::FAILED)
        }
    }
}

fn dispatch(command: Command, general: &General) -> Result<u8> {
    match command {
        Command::Run(args) => {
            let workload = match args.command.is_empty() {
                true => Workload::Default,
                false => Workload::Command(args.command),
            };
            run::run(&args.machine, workload, general)
        }
        Command::Shell(args) => run::run(&args.machine, Workload::Shell, general),
        Command::Image(command) => image::run(&command, general),
        Command::Snap(command) => snap::run(&command, general),
        Command::Cloud(command) => cloud::command(&command, general),
        Command::Doctor => Ok(doctor::run(&here()?, general.json)),
        Command::Config => show_config(general.json),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "apppot", &mut script);
            failure::print_out(&String::from_utf8_lossy(&script));
            Ok(0)
        }
    }
}

/// The configuration of a job in the current directory.
pub(crate) fn here() -> Result<Config> {
    let jobdir = caller::JobDirectory::find(None)?;
    Config::load(Values::default(), &jobdir.real)
}

fn show_config(as_json: bool) -> Result<u8> {
    let mut rows = here()?.rows();
    for name in config::unknown_variables() {
        failure::warn(&format!("{name} is no variable of AppPot's; it is ignored"));
    }
    for row in rows.iter_mut().filter(|row| row.key == "kernel") {
        if row.origin == Origin::BuiltIn.to_string() {
            (row.value, row.origin) = found_kernel();
        }
    }
    if as_json {
        failure::print_out(&format!("{}\n", serde_json::to_string_pretty(&rows)?));
        return Ok(0);
    }
    let widest = |get: fn(&config::Row) -> usize| rows.iter().map(get).max().unwrap_or(0);
    let (keys, values) = (widest(|row| row.key.len()), widest(|row| row.value.len()));
    for row in &rows {
        failure::print_out(&format!(
            "{:<keys$}  {:<values$}  {}\n",
            row.key, row.value, row.origin
        ));
    }
    Ok(0)
}

/// The kernel that is used when nobody has chosen one, and why that one.
fn found_kernel() -> (String, String) {
    match kernel::first() {
        Some(path) => (
            path.display().to_string(),
            String::from("the first one found"),
        ),
        None => (
            String::from("(none)"),
            String::from("none found; see 'apppot doctor'"),
        ),
    }
}
