//! The machine that options and configuration describe.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::Result;
use apppot_backends::image::Image;
use apppot_backends::limits;
use apppot_backends::spec::{Firmware, MachineSpec, Writes};
use apppot_backends::Hypervisor;
use apppot_contract::{Contract, Workload};

use super::shares::shares;
use super::streams::streams;
use crate::caller::{self, JobDirectory};
use crate::cli::{self, Boot, General, MachineArgs};
use crate::config::{Config, Origin, Values};
use crate::failure::hinted;
use crate::image::store;
use crate::signature::Demand;
use crate::snap;
use crate::snap::committed::Wanted;
use crate::units::Size;

/// The agent, which becomes `/init` of the initramfs.
pub(crate) const AGENT: &[u8] = include_bytes!(env!("APPPOT_AGENT"));

/// Memory of a machine when nobody says how much.
pub(crate) const DEFAULT_MEMORY: u64 = 2 << 30;

/// What the options say, as the strongest layer of the configuration.
pub(super) fn options(args: &MachineArgs) -> Values {
    Values {
        image: args.image.clone(),
        backend: args.backend.clone(),
        connect: args.connect.clone(),
        kernel: args.kernel.clone(),
        memory: args.memory,
        cpus: args.cpus,
        containment: args.containment,
        seccomp: args.seccomp,
        network: args.network,
        time_limit: args.time_limit,
        grace: args.grace,
        channel: args.channel.clone(),
        ec2_bucket: args.ec2.ec2_bucket.clone(),
        ec2_type: args.ec2.ec2_type.clone(),
        ec2_subnet: args.ec2.ec2_subnet.clone(),
        ec2_groups: Some(args.ec2.ec2_group.clone()).filter(|groups| !groups.is_empty()),
        ec2_key: args.ec2.ec2_key.clone(),
        ec2_disk: args.ec2.ec2_disk,
        ec2_spot: args.ec2.ec2_spot.then_some(true),
        ..Values::default()
    }
}

/// The machine that the options and the configuration describe.
pub(super) fn specify(
    args: &MachineArgs,
    config: &Config,
    jobdir: &JobDirectory,
    workload: Workload,
    backend: &dyn Hypervisor,
    started: Instant,
    general: &General,
) -> Result<MachineSpec> {
    let demand = Demand::of(config);
    let image = open_image(&config.image.value)?;
    if let Some(demand) = &demand {
        demand.check_options(args)?;
        demand.check_kernel(config)?;
        demand.check_image(&image)?;
    }
    let writes = writes(args);
    let archives = snap::examine(
        &args.changes,
        args.changes_any_base,
        &image,
        &writes,
        demand.as_ref(),
    )?;
    if args.seccomp.is_some() && !backend.capabilities().seccomp {
        return Err(refuse_seccomp(backend.name()));
    }
    let firmware = firmware(args, backend, &image);
    let is_host = image.path == Path::new("/");
    if is_host {
        refuse_for_the_host(args)?;
    }
    let (shares, guest_jobdir) = shares(args, config, jobdir, is_host)?;
    let contract = contract(args, config, guest_jobdir, workload, started)?;
    // What somebody demands signatures for is not looked for in a directory of the user's.
    let may = demand.is_none() && writes == Writes::Memory && firmware == Firmware::None;
    let wanted = Wanted {
        image: &image,
        archives: &archives,
        environment: environment(config, backend),
        deadline: config.time_limit.value.map(|limit| started + limit.0),
        makes: !args.dry_run,
        verbose: general.verbose > 0,
        quiet: general.quiet,
    };
    let committed = may.then(|| wanted.get()).flatten();
    let changes = match committed {
        Some(_) => Vec::new(),
        None => archives.into_iter().map(|it| it.changes).collect(),
    };
    Ok(MachineSpec {
        image: committed.unwrap_or(image),
        writes,
        changes,
        kernel: match firmware {
            Firmware::None => config.kernel.value.clone(),
            // A configured one is for the machines that boot one.
            Firmware::Bios | Firmware::Uefi => args.kernel.clone(),
        },
        firmware,
        agent: Cow::Borrowed(AGENT),
        memory: memory(config),
        cpus: config.cpus.value.0,
        shares,
        disks: Vec::new(),
        live: None,
        serial_terminal: args.pty_console,
        connect: match backend.capabilities().managed {
            true => config.connect.value.clone(),
            // A configured one is for those machines.
            false => args.connect.clone(),
        },
        contract,
        network: config.network.value,
        containment: config.containment.value,
        seccomp: config.seccomp.value,
        trim_resident: crate::batch::is_job(),
        extra: args.extra.clone(),
    })
}

/// What the launcher's own machines, which this one needs, have in common with it.
fn environment(config: &Config, backend: &dyn Hypervisor) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![
        ("APPPOT_BACKEND", backend.name().into()),
        ("APPPOT_MEMORY", memory(config).to_string().into()),
    ];
    if let Some(kernel) = &config.kernel.value {
        environment.push(("APPPOT_KERNEL", kernel.into()));
    }
    if let Some(connect) = &config.connect.value {
        environment.push(("APPPOT_CONNECT", connect.into()));
    }
    for row in config.rows() {
        match row.key {
            "containment" => environment.push(("APPPOT_CONTAINMENT", row.value.into())),
            "seccomp" => environment.push(("APPPOT_SECCOMP", row.value.into())),
            _ => {}
        }
    }
    environment
}

/// What the agent is told, but for the guest's half of what the backend provides.
pub(crate) fn contract(
    args: &MachineArgs,
    config: &Config,
    jobdir: PathBuf,
    workload: Workload,
    started: Instant,
) -> Result<Contract> {
    let id = match &args.id {
        Some(id) => check_id(id)?,
        None => format!("apppot-{}", std::process::id()),
    };
    let configured = config.env.value.iter();
    let env = configured
        .map(|(name, value)| (name.into(), value.into()))
        .chain(caller::environment(&args.env_file, &args.env)?)
        .collect();
    // What others call the user root is the guest's root.
    let root = args.root || args.user.as_deref() == Some("root");
    let user = match root {
        true => None,
        false => caller::user(args.user.clone()),
    };
    if let (None, Some(name), false) = (&user, &args.user, root) {
        return Err(hinted(
            format!("--user {name}: an account gets the caller's numbers, and root's would make it root"),
            format!("call apppot as another user, or change to it in the guest: -- runuser -u {name} -- COMMAND"),
        ));
    }
    let (stdin, terminal) = streams(args);
    let limit = config.time_limit.value;
    if limit.is_some_and(|limit| limit.0.is_zero()) {
        return Err(hinted(
            format!("the time limit is 0 (from: {})", config.time_limit.origin),
            "leave it out for a job without a limit",
        ));
    }
    let time_left = limit.map(|limit| limit.0.saturating_sub(started.elapsed()));
    Ok(Contract {
        id,
        jobdir,
        tmpdir: Some(PathBuf::from("/tmp")),
        user,
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
    })
}

/// What starts the machine: as asked for, or its own firmware when the image's own init is to run, the image
/// was made to boot by itself, and the backend can.
fn firmware(args: &MachineArgs, backend: &dyn Hypervisor, image: &Image) -> Firmware {
    match args.firmware {
        Some(cli::Firmware::None) => Firmware::None,
        Some(cli::Firmware::Bios) => Firmware::Bios,
        Some(cli::Firmware::Uefi) => Firmware::Uefi,
        None => {
            let boots = args.boot == Boot::System && image.boots_itself && args.kernel.is_none();
            match boots && backend.capabilities().firmware {
                true => Firmware::Bios,
                false => Firmware::None,
            }
        }
    }
}

/// A configured mode is for the machines that have it, an option for this one.
fn refuse_seccomp(backend: &str) -> anyhow::Error {
    hinted(
        format!("--seccomp: backend '{backend}' has no such mode: it always keeps the guest's processes apart"),
        "leave out --seccomp, or use --backend uml",
    )
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
        Some("host") => Path::new("/").to_owned(),
        _ => store::resolve(path),
    };
    let there_is_none = |hint| hinted(format!("there is no image file '{}'", path.display()), hint);
    Image::open(&path).map_err(|error| match is_reference(&path) {
        true => there_is_none("make an image of it first: apppot image import docker://NAME IMAGE"),
        false if crate::cloud::is_image(&path) && !path.exists() => {
            there_is_none("images of a cloud start there: --backend ec2")
        }
        false if store::is_name(&path) && !path.exists() => there_is_none(
            "nor an image of this name in the store, see 'apppot image list'; 'apppot image build' and 'import' make them",
        ),
        false => error.into(),
    })
}

/// Whether this looks like a name in a registry (`docker://alpine`, `ubuntu:22.04`), and is no file.
fn is_reference(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let tagged = || {
        text.split_once(':')
            .is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty())
    };
    !path.exists() && !path.is_absolute() && tagged()
}

pub(crate) fn check_id(id: &str) -> Result<String> {
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
    let free = limits::room_for(wanted).unwrap_or(wanted);
    let most = free.min(limits::most_memory());
    wanted.min(most).max(limits::LEAST_MEMORY)
}
