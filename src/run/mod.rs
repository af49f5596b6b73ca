//! `apppot run` and `apppot shell`: from options to a machine, to an exit status.

mod shares;
mod show;
mod specification;
mod streams;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use apppot_backends::spec::{Firmware, MachineSpec, Network, Writes};
use apppot_backends::Hypervisor;
use apppot_contract::{Channel, Stdin, Workload, CHANNELS};

pub(crate) use self::shares::shares;
pub(crate) use self::show::conclude;
pub(crate) use self::specification::{check_id, contract, AGENT, DEFAULT_MEMORY};
use self::specification::{options, specify};
pub(crate) use self::streams::is_null;
use crate::caller::JobDirectory;
use crate::cli::{Boot, General, MachineArgs};
use crate::cloud;
use crate::config::Config;
use crate::failure::{hinted, warn};
use crate::files::lacks_space;
use crate::outcome;
use crate::session::{self, terminal, Signals, Terms};
use crate::staging::{self, Staging, Wishes};

/// Runs `workload` and returns the exit status.
///
/// # Errors
/// The machine cannot be started, or the host's side of it fails.
pub(crate) fn run(args: &MachineArgs, workload: Workload, general: &General) -> Result<u8> {
    let started = Instant::now();
    if !args.dry_run {
        Signals::hold().context("cannot hold signals")?;
    }
    let jobdir = JobDirectory::find(args.workdir.as_deref())?;
    let config = Config::load(options(args), &jobdir.real)?;
    if config.backend.value == cloud::BACKEND {
        return cloud::run(args, config, &jobdir, workload, started, general);
    }
    cloud::refuse_elsewhere(args)?;
    let backend = select(&config.backend.value, config.kernel.value.as_deref())?;
    let mut spec = specify(
        args,
        &config,
        &jobdir,
        workload,
        backend.as_ref(),
        started,
        general,
    )?;
    let wishes = wishes(args, &config, general)?;
    let can = backend.capabilities();
    let starts = !args.dry_run;
    let files = Staging::plan(&mut spec, &jobdir, &can, wishes, starts)?.map(Arc::new);
    let terms = Terms {
        files,
        ..terms(args, &config, &spec, general, started)
    };
    serve(args, &config, backend.as_ref(), &spec, &terms, general)
}

/// What [`inside`] does with an image.
pub(crate) struct Inside<'a> {
    /// The command, which root runs in the root directory.
    pub(crate) command: Vec<OsString>,
    /// Changes archives, merged before.
    pub(crate) changes: &'a [PathBuf],
    /// Whether they may have been made for another base.
    pub(crate) any_base: bool,
    /// The way out of the guest.
    pub(crate) network: Network,
    /// Whether a demand for signatures counts: not when nothing of the image runs.
    pub(crate) runs_image: bool,
    /// Where the command's output goes; `None`: to our own streams.
    pub(crate) transcript: Option<File>,
}

/// Whether machines can be started for [`inside`].
///
/// # Errors
/// What is in the way.
pub(crate) fn check() -> Result<()> {
    let config = crate::here()?;
    let kernel = config.kernel.value.as_deref();
    select_own(&config.backend.value, kernel)?.probe(kernel)?;
    Ok(())
}

/// Boots the image at `image` to change it, and returns the exit status. Nothing of this host is seen
/// in there, or left: no directories, no names.
///
/// # Errors
/// As [`run`].
pub(crate) fn inside(image: &Path, what: Inside, general: &General) -> Result<u8> {
    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(flatten)]
        machine: MachineArgs,
    }
    let started = Instant::now();
    let words = ["apppot", "--write", "--root", "--no-tty", "--no-stdin"];
    let mut args = <Alone as clap::Parser>::try_parse_from(words)?.machine;
    args.image = Some(image.to_owned());
    args.changes = what.changes.to_vec();
    args.changes_any_base = what.any_base;
    args.network = Some(what.network);
    let jobdir = JobDirectory::find(None)?;
    let mut config = Config::load(options(&args), &jobdir.real)?;
    config.require_signature.value &= what.runs_image;
    config.time_limit.value = None;
    config.env.value.clear();
    let workload = Workload::Command(what.command);
    let backend = select_own(&config.backend.value, config.kernel.value.as_deref())?;
    let mut spec = specify(
        &args,
        &config,
        &jobdir,
        workload,
        backend.as_ref(),
        started,
        general,
    )?;
    spec.shares.clear();
    spec.contract.jobdir = PathBuf::from("/");
    spec.contract.tmpdir = None;
    spec.contract.hostname = None;
    let terms = Terms {
        transcript: what.transcript,
        ..terms(&args, &config, &spec, general, started)
    };
    let status = serve(&args, &config, backend.as_ref(), &spec, &terms, general);
    Signals::release().context("cannot receive signals")?;
    status
}

/// What is wanted of the job's files.
fn wishes(args: &MachineArgs, config: &Config, general: &General) -> Result<Wishes> {
    let channel = match config.channel.value.as_str() {
        "auto" => None,
        word => Some(Channel::from_word(word).ok_or_else(|| {
            let words: Vec<&str> = CHANNELS.iter().map(|channel| channel.word()).collect();
            hinted(
                format!("there is no channel '{word}'"),
                format!("channels are {}, auto", words.join(", ")),
            )
        })?),
    };
    Ok(Wishes {
        channel,
        ..asked(args, general)
    })
}

/// What the options say of the job's files.
pub(crate) fn asked(args: &MachineArgs, general: &General) -> Wishes {
    Wishes {
        channel: None,
        input: args.input.clone(),
        output: args.output.clone(),
        limits: args.output_limits.limits(),
        sync_deletes: args.sync_deletes,
        shown: !general.quiet,
    }
}

/// Starts the machine and stays with it until it has ended.
fn serve(
    args: &MachineArgs,
    config: &Config,
    backend: &dyn Hypervisor,
    spec: &MachineSpec,
    terms: &Terms,
    general: &General,
) -> Result<u8> {
    if args.dry_run {
        return show::dry_run(backend, spec, general);
    }
    if let Some(path) = &args.report {
        outcome::check_report(path)?;
    }
    let image = &config.image.value;
    let cannot_boot = || format!("cannot boot appliance '{}'", image.display());
    backend.reach(spec).with_context(cannot_boot)?;
    // Before there is a second thread, and before the machine inherits anything.
    let _keeper = match terms.terminal {
        true => terminal::Keeper::start().context("cannot watch over the terminal")?,
        false => None,
    };
    let signals = Signals::take().context("cannot receive signals")?;
    let mut machine = match backend.launch(spec) {
        Ok(machine) => machine,
        Err(error) => {
            // It may be why there is none.
            Signals::let_end().context("cannot receive signals")?;
            return Err(error).with_context(cannot_boot);
        }
    };
    if general.verbose > 0 {
        let files = spec.contract.files.as_ref().map(|files| files.channel);
        let best = backend.capabilities().channels.first().copied();
        let chosen = files.or(spec.live);
        let channel = chosen.or(best).map_or("none", Channel::word);
        let why = match config.channel.value.as_str() {
            "auto" => " (the backend's first)",
            _ => "",
        };
        show::describe(machine.as_ref(), spec, &format!("{channel}{why}"));
    }
    let ended = session::serve(machine.as_mut(), signals, terms)?;
    if ended.ending.exit_status() == outcome::FAILED {
        warn_of_full_disks(spec, terms);
    }
    show::conclude(args, general, &spec.contract.id, machine.facts(), &ended)
}

/// The guest knows only that a write has failed.
fn warn_of_full_disks(spec: &MachineSpec, terms: &Terms) {
    let kept = match &spec.writes {
        Writes::Overlay(path) => Some(path),
        Writes::Image => Some(&spec.image.path),
        Writes::Memory => None,
    };
    if let Some(path) = kept.filter(|path| lacks_space(path)) {
        warn(&format!(
            "no space is left on the disk of '{}', which keeps what is written in the appliance",
            path.display()
        ));
    }
    let staging = terms.files.as_deref();
    if let Some(directory) = staging.and_then(Staging::full_directory) {
        warn(&format!(
            "no space is left in '{}', which has the disk with the job's results; {}",
            directory.display(),
            staging::ROOM
        ));
    }
}

/// How the host's side of the link deals with this machine.
fn terms(
    args: &MachineArgs,
    config: &Config,
    spec: &MachineSpec,
    general: &General,
    started: Instant,
) -> Terms {
    Terms {
        reads_stdin: spec.contract.stdin != Stdin::Null,
        terminal: spec.contract.terminal.is_some(),
        deadline: config.time_limit.value.map(|limit| started + limit.0),
        grace: config.grace.value.0,
        // A whole system boots slowly where its instructions are translated.
        boot_patience: match (args.boot, spec.firmware) {
            (Boot::Direct, Firmware::None) => Duration::from_secs(120),
            _ => Duration::from_secs(600),
        },
        last_words: match args.boot {
            // Results are looked for before the first of them is sent.
            Boot::Direct if spec.contract.files.is_some() => Duration::from_secs(20),
            Boot::Direct => Duration::from_secs(3),
            Boot::System => Duration::from_secs(90),
        },
        files: None,
        leaves_disk: spec.writes != Writes::Memory,
        show_console: general.verbose > 1,
        show_warnings: !general.quiet,
        transcript: None,
    }
}

/// The backend for machines that change images. The files are descriptors of ours, which no daemon that manages
/// machines can open in our name.
fn select_own(name: &str, kernel: Option<&Path>) -> Result<Box<dyn Hypervisor>> {
    let chosen = select(name, kernel)?;
    match chosen.capabilities().managed {
        true => select("auto", kernel),
        false => Ok(chosen),
    }
}

/// The backend of that name, for machines with this kernel. `auto` is the first one that runs them by
/// hardware virtualisation, else the first one that can run them at all.
fn select(name: &str, kernel: Option<&Path>) -> Result<Box<dyn Hypervisor>> {
    let mut backends = apppot_backends::all();
    let names: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    let names = names.join(", ");
    if name == "auto" {
        backends.retain(|backend| !backend.capabilities().managed);
        let mut order: Vec<usize> = (0..backends.len()).collect();
        order.sort_by_key(|&index| !backends[index].has_hardware());
        let usable = |&index: &usize| backends[index].probe(kernel).is_ok();
        // When none can, the launch of the first says what is in the way.
        let index = order.into_iter().find(usable).unwrap_or(0);
        return Ok(backends.swap_remove(index));
    }
    match backends.iter().position(|backend| backend.name() == name) {
        Some(index) => Ok(backends.swap_remove(index)),
        None if name == cloud::BACKEND => Err(hinted(
            "machines of EC2 run images that were published, and change none of this host's",
            "choose another backend for this: APPPOT_BACKEND=auto",
        )),
        None if apppot_backends::left_out().contains(&name) => Err(hinted(
            format!("this build of apppot has no backend '{name}'"),
            match cfg!(target_feature = "crt-static") {
                true => "a static file cannot have it; 'make install' builds apppot with it",
                false => "'make install' builds apppot with it",
            },
        )),
        None => Err(hinted(
            format!("there is no backend '{name}'"),
            format!("backends of this build: {names}, ec2, auto"),
        )),
    }
}
