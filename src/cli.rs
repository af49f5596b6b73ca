//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use apppot_backends::spec::{Containment, Network, Seccomp};
use apppot_snapshot::transfer::Limits;
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cloud::{CloudCommand, Ec2Args};
use crate::config::Word;
use crate::image::ImageCommand;
use crate::units::{Cpus, Duration, Size};

/// The version, and what this build was made without.
const VERSION: &str = match cfg!(feature = "libvirt") {
    true => env!("CARGO_PKG_VERSION"),
    false => concat!(env!("CARGO_PKG_VERSION"), " (without libvirt)"),
};

/// Run a command inside a software appliance as if it were an ordinary program.
#[derive(Debug, Parser)]
#[command(name = "apppot", version = VERSION, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) general: General,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct General {
    /// Say more: what was chosen and why; twice: the guest's console too
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Print no warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Print results and errors as JSON (run: the report, on standard error)
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in an appliance
    #[command(after_long_help = RUN_HELP)]
    Run(RunArgs),
    /// Open a shell in an appliance
    Shell(ShellArgs),
    /// Make, show, check and keep images of appliances
    #[command(subcommand)]
    Image(ImageCommand),
    /// Record what is in an appliance, and carry changes from one copy to another
    #[command(subcommand)]
    Snap(SnapCommand),
    /// Jobs in a cloud: what runs, what has ended, and their output and results
    #[command(subcommand)]
    Cloud(CloudCommand),
    /// Check what this machine offers, and say what to do where it lacks something
    Doctor,
    /// Show the effective configuration and where each value comes from
    Config,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `apppot snap`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapCommand {
    /// Record what is in an appliance
    Base {
        /// The appliance: a raw ext4 image or disk, or a root directory
        image: PathBuf,
        /// The overlay file above the image
        #[arg(long, value_name = "FILE")]
        overlay: Option<PathBuf>,
        /// Where to write the record
        #[arg(short, long, value_name = "FILE", value_parser = new_file(), default_value = apppot_snapshot::DEFAULT_BASE)]
        output: PathBuf,
    },
    /// Write an archive of what an appliance has that its base has not
    Changes(ChangesArgs),
    /// Show what is in a changes archive
    Inspect {
        /// The archive
        #[arg(default_value = apppot_snapshot::DEFAULT_CHANGES)]
        file: PathBuf,
    },
    /// Show what changed between an appliance and its base, and write nothing
    Diff {
        #[command(flatten)]
        what: WhatChanged,
    },
    /// Make a whole image of a base and changes
    Commit {
        /// The base image
        #[arg(long, value_name = "IMAGE")]
        base: PathBuf,
        /// A changes archive; repeatable, merged in order
        #[arg(long, value_name = "FILE", required = true)]
        changes: Vec<PathBuf>,
        /// The new image
        #[arg(short, long, value_name = "FILE", value_parser = new_file())]
        output: PathBuf,
        /// Replace a file that is there already
        #[arg(long)]
        force: bool,
        /// Merge archives even if they were made for another base
        #[arg(long)]
        changes_any_base: bool,
    },
}

/// `apppot snap changes`.
#[derive(Debug, Args)]
pub(crate) struct ChangesArgs {
    #[command(flatten)]
    pub(crate) what: WhatChanged,
    /// Where to write the archive
    #[arg(short, long, value_name = "FILE", value_parser = new_file(), default_value = apppot_snapshot::DEFAULT_CHANGES)]
    pub(crate) output: PathBuf,
}

/// Options of the commands that compare an appliance with its base.
#[derive(Debug, Args)]
pub(crate) struct WhatChanged {
    /// The base: the image itself, or what 'apppot snap base' recorded of it
    #[arg(long, value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// The changed appliance; with --overlay, the image below it
    pub(crate) image: PathBuf,
    /// The overlay file above the image
    #[arg(long, value_name = "FILE")]
    pub(crate) overlay: Option<PathBuf>,
    /// Leave out what matches; repeatable. So do the lines of ./.apppotignore
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Take what matches, whatever else leaves it out; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
}

const RUN_HELP: &str = "\
Without a command, the job directory's ./apppot-run is run, else the image's
/etc/apppot/autorun, else what a container image was made to run, else a shell.
The command runs in the job directory, with the caller's user, standard streams
and signals.

Exit status: the command's own; 128+n when signal n ended it; 124 time limit;
125 AppPot or the machine failed; 126 the command cannot be executed; 127 it
does not exist.

Examples:
  apppot run -- uname -a
  apppot run --image debian.img --memory 512M -- sort -u < words > sorted
  apppot run --image debian.img --overlay my.cow -- sudo dpkg -i tool.deb";

/// `apppot run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// `apppot shell`.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

/// Who is PID 1 while the job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Boot {
    /// AppPot's agent: fast
    Direct,
    /// The image's own init
    System,
}

/// What starts the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Firmware {
    /// The hypervisor: a kernel of AppPot's
    None,
    /// A BIOS, which starts the image's own boot loader
    Bios,
    /// UEFI firmware, which starts the image's own boot loader
    Uefi,
}

impl From<Boot> for apppot_contract::Boot {
    fn from(boot: Boot) -> Self {
        match boot {
            Boot::Direct => apppot_contract::Boot::Direct,
            Boot::System => apppot_contract::Boot::System,
        }
    }
}

/// Options of the commands that start a machine.
#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// The appliance: an image (a path, a name in the store, or ami-… of EC2), a root directory, or 'host' for this host's own root, read-only
    #[arg(short, long, value_name = "PATH", help_heading = "Appliance")]
    pub(crate) image: Option<PathBuf>,
    /// Keep writes to the image in this copy-on-write file, or 'memory' (default: they vanish)
    #[arg(long, value_name = "FILE", help_heading = "Appliance")]
    pub(crate) overlay: Option<PathBuf>,
    /// Write into the image itself
    #[arg(long, conflicts_with = "overlay", help_heading = "Appliance")]
    pub(crate) write: bool,
    /// Merge this changes archive at boot; repeatable
    #[arg(long, value_name = "FILE", help_heading = "Appliance")]
    pub(crate) changes: Vec<PathBuf>,
    /// Merge changes archives even if they were made for another base
    #[arg(long, requires = "changes", help_heading = "Appliance")]
    pub(crate) changes_any_base: bool,

    /// The hypervisor: uml, qemu, libvirt (where this build has it), ec2 (a cloud), or auto
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub(crate) backend: Option<String>,
    /// libvirt's daemon (default: LIBVIRT_DEFAULT_URI, else qemu:///session)
    #[arg(long, value_name = "URI", help_heading = "Machine")]
    pub(crate) connect: Option<String>,
    /// libvirt: leave the guest's serial console to 'virsh console' (errors then do not show its last lines)
    #[arg(long, help_heading = "Machine")]
    pub(crate) pty_console: bool,
    /// The guest kernel
    #[arg(short, long, value_name = "FILE", help_heading = "Machine")]
    pub(crate) kernel: Option<PathBuf>,
    /// Guest memory, such as 512M or 2G
    #[arg(
        short,
        long,
        visible_alias = "mem",
        value_name = "SIZE",
        help_heading = "Machine"
    )]
    pub(crate) memory: Option<Size>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub(crate) cpus: Option<Cpus>,
    /// The way out of the guest: none, user, or user,host-loopback: with this host's loopback at 10.0.2.2
    #[arg(long, value_name = "MODE", value_parser = <Network as Word>::read, help_heading = "Machine")]
    pub(crate) network: Option<Network>,
    /// Who is PID 1 in the guest
    #[arg(long, value_enum, default_value = "direct", help_heading = "Machine")]
    pub(crate) boot: Boot,
    /// Start the image's own boot loader by a BIOS or by UEFI firmware, or boot a kernel of AppPot's (default: bios for --boot system with an image of layout disk where the hypervisor has one, else none)
    #[arg(long, value_enum, help_heading = "Machine")]
    pub(crate) firmware: Option<Firmware>,
    /// Confine the machine's process to its own files: required, auto or off
    #[arg(long, value_name = "MODE", value_parser = <Containment as Word>::read, help_heading = "Machine")]
    pub(crate) containment: Option<Containment>,
    /// UML's seccomp mode, auto or off: faster; guest processes are not protected from each other
    #[arg(long, value_name = "MODE", value_parser = <Seccomp as Word>::read, help_heading = "Machine")]
    pub(crate) seccomp: Option<Seccomp>,
    /// A raw word for the guest kernel's command line; repeatable
    #[arg(
        long,
        value_name = "WORD",
        allow_hyphen_values = true,
        help_heading = "Machine"
    )]
    pub(crate) extra: Vec<OsString>,
    /// Name of the machine
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub(crate) id: Option<String>,

    /// The job directory (default: the current directory)
    #[arg(short, long, value_name = "DIR", help_heading = "Job")]
    pub(crate) workdir: Option<PathBuf>,
    /// How the job's files reach the guest: hostfs, 9p or virtiofs (shared), link or disk (copied), or auto
    #[arg(long, value_name = "NAME", help_heading = "Files")]
    pub(crate) channel: Option<String>,
    /// Copy only what matches to the guest; repeatable, '!' before it leaves out
    #[arg(long, value_name = "PATTERN", help_heading = "Files")]
    pub(crate) input: Vec<String>,
    /// Copy only results that match back; repeatable, '!' before it leaves out
    #[arg(long, value_name = "PATTERN", help_heading = "Files")]
    pub(crate) output: Vec<String>,
    #[command(flatten)]
    pub(crate) output_limits: OutputLimits,
    /// Delete here what the job has deleted of what was copied
    #[arg(long, help_heading = "Files")]
    pub(crate) sync_deletes: bool,
    /// Share another directory; repeatable
    #[arg(short, long, value_name = "HOST[:GUEST][:ro]", help_heading = "Job")]
    pub(crate) bind: Vec<OsString>,
    /// Set a variable in the job's environment, or pass one on; repeatable
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Job")]
    pub(crate) env: Vec<OsString>,
    /// Set variables from a file of NAME=VALUE lines; repeatable
    #[arg(long, value_name = "FILE", help_heading = "Job")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Run as root of the guest
    #[arg(long, conflicts_with = "user", help_heading = "Job")]
    pub(crate) root: bool,
    /// Run as this account of the appliance, which gets the caller's numbers
    #[arg(short, long, value_name = "NAME", help_heading = "Job")]
    pub(crate) user: Option<String>,
    /// Give the command a terminal even when the caller has none
    #[arg(short, long, overrides_with = "no_tty", help_heading = "Job")]
    pub(crate) tty: bool,
    /// Give the command no terminal
    #[arg(short = 'T', long, overrides_with = "tty", help_heading = "Job")]
    pub(crate) no_tty: bool,
    /// Leave standard input alone: the command's is empty, as with ssh -n
    #[arg(short = 'n', long, conflicts_with = "tty", help_heading = "Job")]
    pub(crate) no_stdin: bool,
    /// End the job after this time, such as 90s or 1h30m
    #[arg(long, value_name = "TIME", help_heading = "Job")]
    pub(crate) time_limit: Option<Duration>,
    /// Time between asking the job to end and ending it (default: 4s)
    #[arg(long, value_name = "TIME", help_heading = "Job")]
    pub(crate) grace: Option<Duration>,
    /// Write a report about the run to this file, as JSON
    #[arg(long, value_name = "FILE", value_parser = new_file(), help_heading = "Job")]
    pub(crate) report: Option<PathBuf>,
    /// Print what would be started, and start nothing
    #[arg(long, help_heading = "Job")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ec2: Ec2Args,
}

/// What a machine may leave here.
#[derive(Debug, Args)]
pub(crate) struct OutputLimits {
    /// The most bytes of copied results
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256G",
        help_heading = "Files"
    )]
    output_limit: Size,
    /// The most files among copied results
    #[arg(
        long,
        value_name = "N",
        default_value = "10000000",
        help_heading = "Files"
    )]
    output_files: u64,
}

impl OutputLimits {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            bytes: self.output_limit.0,
            entries: self.output_files,
        }
    }
}

/// The name of a file to be written. Elsewhere `-` is standard output, here it would be a file's name.
pub(crate) fn new_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("it does not go to standard output; './-' is a file of that name"),
        false => Ok(path),
    })
}
