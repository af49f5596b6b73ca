//! `apppot run` and `apppot shell`: from options to a machine, to an exit status.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, Context, Result};
use apppot_backends::image::Image;
use apppot_backends::spec::{MachineSpec, Share, Writes};
use apppot_backends::{limits, Hypervisor, Machine};
use apppot_contract::{Contract, Stdin, Terminal, Workload};

use crate::caller::{self, JobDirectory};
use crate::cli::{Boot, General, MachineArgs};
use crate::config::{Config, Origin, Values};
use crate::failure::hinted;
use crate::outcome;
use crate::session::{self, terminal, Ended, Signals, Terms};
use crate::snap;
use crate::units::Size;

/// The agent, which becomes `/init` of the initramfs.
const AGENT: &[u8] = include_bytes!(env!("APPPOT_AGENT"));

/// Memory of a machine when nobody says how much.
const DEFAULT_MEMORY: u64 = 2 << 30;

/// Runs `workload` and returns the exit status.
///
/// # Errors
/// The machine cannot be started, or the host's side of it fails.
pub(crate) fn run(args: &MachineArgs, workload: Workload, general: &General) -> Result<u8> {
    let started = Instant::now();
    let jobdir = JobDirectory::find(args.workdir.as_deref())?;
    let config = Config::load(options(args), &jobdir.real)?;
    let spec = specify(args, &config, &jobdir, workload, started)?;
    serve(args, &config, &spec, general, started)
}

/// Boots the image at `image` to merge `changes` into it, and returns the exit status.
///
/// # Errors
/// As [`run`].
pub(crate) fn merge_into(
    image: &Path,
    changes: &[PathBuf],
    any_base: bool,
    general: &General,
) -> Result<u8> {
    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(flatten)]
        machine: MachineArgs,
    }
    let started = Instant::now();
    let words = ["apppot", "--write", "--root", "--no-tty"];
    let mut args = <Alone as clap::Parser>::try_parse_from(words)?.machine;
    args.image = Some(image.to_owned());
    args.changes = changes.to_vec();
    args.changes_any_base = any_base;
    let jobdir = JobDirectory::find(None)?;
    let config = Config::load(options(&args), &jobdir.real)?;
    let settle = vec!["/run/apppot-bin/apppot-snap".into(), "sync".into()];
    let mut spec = specify(&args, &config, &jobdir, Workload::Command(settle), started)?;
    // Nothing of this host is to be left in the image: no mount points, no names.
    spec.shares.clear();
    spec.contract.jobdir = PathBuf::from("/");
    spec.contract.tmpdir = None;
    spec.contract.stdin = Stdin::Null;
    serve(&args, &config, &spec, general, started)
}

/// Starts the machine and stays with it until it has ended.
fn serve(
    args: &MachineArgs,
    config: &Config,
    spec: &MachineSpec,
    general: &General,
    started: Instant,
) -> Result<u8> {
    let backend = select(&config.backend.value)?;
    if args.dry_run {
        return dry_run(backend.as_ref(), spec, general);
    }
    if let Some(path) = &args.report {
        outcome::check_report(path)?;
    }
    let terms = Terms {
        reads_stdin: spec.contract.stdin != Stdin::Null,
        terminal: spec.contract.terminal.is_some(),
        deadline: config.time_limit.value.map(|limit| started + limit.0),
        grace: config.grace.value.0,
        last_words: match args.boot {
            Boot::Direct => Duration::from_secs(3),
            Boot::System => Duration::from_secs(90),
        },
        leaves_disk: spec.writes != Writes::Memory,
        show_console: general.verbose > 1,
        show_warnings: !general.quiet,
    };
    // Before there is a second thread, and before the machine inherits anything.
    let _keeper = match terms.terminal {
        true => terminal::Keeper::start().context("cannot watch over the terminal")?,
        false => None,
    };
    let signals = Signals::take().context("cannot receive signals")?;
    let image = &config.image.value;
    let mut machine = backend
        .launch(spec)
        .with_context(|| format!("cannot boot appliance '{}'", image.display()))?;
    if general.verbose > 0 {
        describe(machine.as_ref(), spec);
    }
    let ended = session::serve(machine.as_mut(), signals, &terms)?;
    conclude(args, general, spec, machine.as_ref(), &ended)
}

/// What the options say, as the strongest layer of the configuration.
fn options(args: &MachineArgs) -> Values {
    Values {
        image: args.image.clone(),
        backend: args.backend.clone(),
        kernel: args.kernel.clone(),
        memory: args.memory,
        cpus: args.cpus,
        containment: args.containment,
        seccomp: args.seccomp,
        time_limit: args.time_limit,
        grace: args.grace,
        ..Values::default()
    }
}

/// The backend of that name; `auto` is the first one that can run here.
fn select(name: &str) -> Result<Box<dyn Hypervisor>> {
    let mut backends = apppot_backends::all();
    let names: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    let names = names.join(", ");
    if name == "auto" {
        // The last one is not asked: its launch says what is in the way.
        let last = backends.len() - 1;
        let able = backends[..last]
            .iter()
            .position(|backend| backend.probe().is_ok());
        return Ok(backends.swap_remove(able.unwrap_or(last)));
    }
    match backends.iter().position(|backend| backend.name() == name) {
        Some(index) => Ok(backends.swap_remove(index)),
        None => Err(hinted(
            format!("there is no backend '{name}'"),
            format!("backends of this build: {names}, auto"),
        )),
    }
}

/// The machine that the options and the configuration describe.
fn specify(
    args: &MachineArgs,
    config: &Config,
    jobdir: &JobDirectory,
    workload: Workload,
    started: Instant,
) -> Result<MachineSpec> {
    let image = open_image(&config.image.value)?;
    let writes = writes(args);
    let changes = snap::examine(&args.changes, args.changes_any_base, &image, &writes)?;
    let is_host = image.path == Path::new("/");
    if is_host {
        refuse_for_the_host(args)?;
    }
    let (shares, guest_jobdir) = shares(args, config, jobdir, is_host)?;
    let id = match &args.id {
        Some(id) => check_id(id)?,
        None => format!("apppot-{}", std::process::id()),
    };
    let env = config
        .env
        .value
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    let env = env
        .chain(caller::environment(&args.env_file, &args.env)?)
        .collect();
    let (stdin, terminal) = streams(args);
    let time_left = config
        .time_limit
        .value
        .map(|limit| limit.0.saturating_sub(started.elapsed()));
    let contract = Contract {
        id,
        jobdir: guest_jobdir,
        tmpdir: Some(PathBuf::from("/tmp")),
        user: match args.root {
            true => None,
            false => caller::user(args.user.clone()),
        },
        workload,
        stdin,
        terminal,
        umask: caller::umask(),
        env,
        hostname: caller::hostname(),
        deadline: time_left.map(|left| SystemTime::now() + left),
        grace: config.grace.value.0,
        boot: args.boot.into(),
        ..Contract::default()
    };
    Ok(MachineSpec {
        image,
        writes,
        changes,
        kernel: config.kernel.value.clone(),
        agent: Cow::Borrowed(AGENT),
        memory: memory(config),
        cpus: config.cpus.value,
        shares,
        contract,
        containment: config.containment.value,
        seccomp: config.seccomp.value,
        trim_resident: crate::batch::is_job(),
        extra: args.extra.clone(),
    })
}

/// The host's own root is an appliance that nothing can be broken in.
fn refuse_for_the_host(args: &MachineArgs) -> Result<()> {
    if args.write {
        return Err(hinted(
            "--write: the default appliance is this host's own root, which is never written into",
            "name an image with --image",
        ));
    }
    if args.boot == Boot::System {
        return Err(hinted(
            "--boot system: the default appliance is this host's own root, whose services are not started",
            "name an image with --image, or leave out --boot",
        ));
    }
    Ok(())
}

fn open_image(path: &Path) -> Result<Image> {
    let path = match path.to_str() {
        Some("host") => Path::new("/"),
        _ => path,
    };
    Ok(Image::open(path)?)
}

fn check_id(id: &str) -> Result<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > 64 || !id.chars().all(allowed) {
        return Err(hinted(
            format!("'{id}' cannot be a machine's name"),
            "names are up to 64 letters, digits, hyphens, underscores and dots",
        ));
    }
    Ok(id.to_owned())
}

fn writes(args: &MachineArgs) -> Writes {
    match &args.overlay {
        _ if args.write => Writes::Image,
        Some(path) if path.as_os_str() != "memory" => Writes::Overlay(path.clone()),
        _ => Writes::Memory,
    }
}

/// Guest memory: as asked for, or what fits of the default or of the batch system's grant.
fn memory(config: &Config) -> u64 {
    let wanted = config
        .memory
        .value
        .map_or(DEFAULT_MEMORY, |Size(bytes)| bytes);
    if !matches!(config.memory.origin, Origin::BuiltIn | Origin::Batch(_)) {
        return wanted;
    }
    let (fit, _) = limits::backings();
    let free = fit
        .iter()
        .map(|backing| backing.free)
        .max()
        .unwrap_or(wanted);
    let most = free.min(limits::most_memory());
    wanted.min(most).max(limits::LEAST_MEMORY)
}

/// The job directory and the binds, and where the guest sees the job directory.
fn shares(
    args: &MachineArgs,
    config: &Config,
    jobdir: &JobDirectory,
    is_host: bool,
) -> Result<(Vec<Share>, PathBuf)> {
    let mut shares = Vec::new();
    let mut guest_jobdir = jobdir.known_as.clone();
    // The host appliance shows its root as it is; nothing in / itself can be the user's to write.
    if !(is_host && jobdir.real == Path::new("/")) {
        let guest = match belongs_to_the_system(&jobdir.real) && !is_host {
            true => PathBuf::from("/job"),
            false => jobdir.real.clone(),
        };
        if guest != jobdir.real {
            guest_jobdir.clone_from(&guest);
        }
        shares.push(Share {
            host: jobdir.real.clone(),
            guest,
            read_only: false,
        });
    }
    let configured = config.bind.value.iter().map(OsString::from);
    for text in configured.chain(args.bind.iter().cloned()) {
        let share =
            bind(&text).with_context(|| format!("cannot bind '{}'", text.to_string_lossy()))?;
        shares.push(share);
    }
    Ok((shares, guest_jobdir))
}

/// Directories that an image has of its own and that must not be covered.
fn belongs_to_the_system(path: &Path) -> bool {
    const SYSTEM: [&str; 11] = [
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys",
        "/usr",
    ];
    path == Path::new("/")
        || path == Path::new("/run")
        || path == Path::new("/var")
        || SYSTEM.iter().any(|system| path.starts_with(system))
}

/// `HOST[:GUEST][:ro]`.
fn bind(text: &OsString) -> Result<Share> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes();
    let (paths, read_only) = match bytes.strip_suffix(b":ro") {
        Some(paths) => (paths, true),
        None => (bytes.strip_suffix(b":rw").unwrap_or(bytes), false),
    };
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_owned()));
    let (host, guest) = match paths.iter().position(|&byte| byte == b':') {
        // A colon may also be part of the name.
        Some(at) if !path(paths).exists() => (path(&paths[..at]), Some(path(&paths[at + 1..]))),
        _ => (path(paths), None),
    };
    let host = std::fs::canonicalize(&host).with_context(|| format!("'{}'", host.display()))?;
    if !host.is_dir() {
        bail!(
            "'{}' is no directory; only directories can be shared",
            host.display()
        );
    }
    let guest = guest.unwrap_or_else(|| host.clone());
    if !guest.is_absolute() || guest == Path::new("/") {
        bail!(
            "'{}' is no place for a directory in the guest",
            guest.display()
        );
    }
    Ok(Share {
        host,
        guest,
        read_only,
    })
}

/// Where the job's standard input comes from, and whether it has a terminal.
fn streams(args: &MachineArgs) -> (Stdin, Option<Terminal>) {
    if args.tty || (terminal::is_interactive() && !args.no_tty) {
        let (rows, columns) = terminal::size().unwrap_or((24, 80));
        let term = std::env::var("TERM").unwrap_or_else(|_| String::from("dumb"));
        let terminal = Terminal {
            term,
            rows,
            columns,
        };
        return (Stdin::Link, Some(terminal));
    }
    let stdin = std::io::stdin();
    let unusable = stdin.is_terminal() && !terminal::is_foreground();
    match unusable || is_null() {
        true => (Stdin::Null, None),
        false => (Stdin::Link, None),
    }
}

/// Whether standard input is `/dev/null`; that is also what a closed one becomes.
fn is_null() -> bool {
    const NULL: (u64, u64) = (1, 3);
    nix::sys::stat::fstat(std::io::stdin()).is_ok_and(|stat| {
        let device = (
            nix::sys::stat::major(stat.st_rdev),
            nix::sys::stat::minor(stat.st_rdev),
        );
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && device == NULL
    })
}

fn dry_run(backend: &dyn Hypervisor, spec: &MachineSpec, general: &General) -> Result<u8> {
    let rendered = backend.render(spec)?;
    if general.json {
        crate::failure::print_out(&format!("{}\n", serde_json::to_string_pretty(&rendered)?));
        return Ok(0);
    }
    crate::failure::print_out(&format!("backend: {}\n", rendered.backend));
    for (name, value) in &rendered.environment {
        crate::failure::print_out(&format!("environment: {name}={value}\n"));
    }
    for (number, what) in &rendered.descriptors {
        crate::failure::print_out(&format!("descriptor {number}: {what}\n"));
    }
    match &rendered.containment {
        Some(rules) => rules
            .iter()
            .for_each(|rule| crate::failure::print_out(&format!("may {rule}\n"))),
        None => crate::failure::print_out("not confined\n"),
    }
    if let Some(document) = &rendered.document {
        crate::failure::print_out(&format!("contract, by the link:\n{document}"));
    }
    crate::failure::print_out("command:\n");
    rendered
        .argv
        .iter()
        .for_each(|arg| crate::failure::print_out(&format!("  {arg}\n")));
    Ok(0)
}

/// `-v`: what was chosen.
fn describe(machine: &dyn Machine, spec: &MachineSpec) {
    let facts = machine.facts();
    crate::failure::say(&format!(
        "machine {}: {} {}",
        spec.contract.id, facts.backend, facts.release
    ));
    crate::failure::say(&format!(
        "  image:       {} ({})",
        spec.image.path.display(),
        spec.image.kind
    ));
    crate::failure::say(&format!("  kernel:      {}", facts.kernel));
    crate::failure::say(&format!(
        "  memory:      {} in {}",
        Size(spec.memory),
        facts.memory_backing
    ));
    let pinned = facts
        .pinned_to
        .map(|cpu| format!(", bound to host CPU {cpu}"));
    crate::failure::say(&format!(
        "  cpus:        {}{}",
        spec.cpus,
        pinned.unwrap_or_default()
    ));
    crate::failure::say(&format!("  containment: {}", facts.containment));
}

/// Reports how it ended.
fn conclude(
    args: &MachineArgs,
    general: &General,
    spec: &MachineSpec,
    machine: &dyn Machine,
    ended: &Ended,
) -> Result<u8> {
    let ending = &ended.ending;
    if general.verbose > 0 {
        let boot = ended.boot.map_or(0.0, |boot| boot.as_secs_f64() * 1e3);
        let total = ended.total.as_secs_f64() * 1e3;
        crate::failure::say(&format!(
            "  time:        {boot:.0} ms to the agent, {total:.0} ms in all"
        ));
    }
    if let Some(error) = ending.error() {
        crate::failure::print(&error, general.json);
    }
    if general.json || args.report.is_some() {
        let report = outcome::report(
            &spec.contract.id,
            machine.facts(),
            ending,
            ended.boot,
            ended.total,
        );
        if general.json {
            crate::failure::say(&format!("{report}"));
        }
        if let Some(path) = &args.report {
            outcome::write_report(path, &report)?;
        }
    }
    Ok(ending.exit_status())
}
