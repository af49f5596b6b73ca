//! Containment: what a hypervisor's process may reach (Landlock,
//! `Documentation/userspace-api/landlock.rst`).
//!
//! The paper promises that an appliance does no more harm than its user's own processes (R3). This
//! is stronger: the process reads, writes, lists and makes only the files that the machine needs, and
//! changes only their modes, owners and times ([`attributes`]), whatever the guest's root does. That
//! other files exist, and how large they are, can be seen by who knows their names. UML's own `hostfs=`
//! option is no confinement: `..` and symbolic links leave it.

pub mod attributes;
mod filter;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use landlock::{
    Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, ABI,
};

use attributes::{Supervisor, Writable};
use filter::Filter;

use crate::spec::Containment;
use crate::{Error, Result};

/// What a path may be used for, with all that is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Reading files and directories.
    Read,
    /// Reading and executing: the kernel and what it is linked with.
    Execute,
    /// Everything.
    Write,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reach::Read => "read",
            Reach::Execute => "execute",
            Reach::Write => "write",
        })
    }
}

/// One file or directory that may be reached.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The file or directory.
    pub(crate) file: OwnedFd,
    /// What for.
    pub(crate) reach: Reach,
}

/// The newest Landlock ABI that this code was written against; older kernels enforce what they know.
const NEWEST: ABI = ABI::V7;

/// The version of Landlock in the host's kernel; 0 when it has none or it is switched off.
#[must_use]
pub fn landlock_abi() -> i32 {
    const VERSION: libc::c_long = 1;
    // SAFETY: with this flag the call takes no attributes and returns a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0,
            VERSION,
        )
    };
    i32::try_from(abi).unwrap_or(0).max(0)
}

/// What confines a hypervisor's process. It enters it by itself, between fork and exec.
#[derive(Debug)]
pub struct Confinement {
    ruleset: OwnedFd,
    /// `None`: attributes are left to the process.
    filter: Option<std::result::Result<Filter, String>>,
}

impl Confinement {
    /// Confinement to `rules`, of contents and attributes; `None` when there is to be none.
    ///
    /// # Errors
    /// Confinement is required and the host's kernel has not all that it takes, or it refuses the rules.
    pub(crate) fn new(rules: &[Rule], mode: Containment) -> Result<Option<Self>> {
        let Some(confinement) = Self::of_contents(rules, mode)? else {
            return Ok(None);
        };
        let filter = match attributes::obstacle() {
            Some(obstacle) => Err(obstacle),
            None => Filter::new(landlock_abi() < TRUNCATION).map_err(|error| error.to_string()),
        };
        match (&filter, mode) {
            (Err(reason), Containment::Required) => Err(failed(reason)),
            _ => Ok(Some(Confinement {
                filter: Some(filter),
                ..confinement
            })),
        }
    }

    /// Confinement of contents to `rules`, for a process that does not change the attributes of whatever
    /// the guest names; `None` when there is to be none.
    ///
    /// # Errors
    /// Confinement is required and the host's kernel has none, or it refuses the rules.
    pub(crate) fn of_contents(rules: &[Rule], mode: Containment) -> Result<Option<Self>> {
        let abi = landlock_abi();
        if mode == Containment::Off {
            return Ok(None);
        }
        if abi == 0 {
            return match mode {
                Containment::Required => Err(failed(NO_LANDLOCK)),
                _ => Ok(None),
            };
        }
        let ruleset: Option<OwnedFd> = create(rules).map_err(failed)?.into();
        let ruleset = ruleset.ok_or_else(|| failed(NO_LANDLOCK))?;
        Ok(Some(Confinement {
            ruleset,
            filter: None,
        }))
    }

    /// Confines the calling process for good: async-signal-safe.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // SAFETY: plain numbers.
        let entered = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::syscall(
                    libc::SYS_landlock_restrict_self,
                    self.ruleset.as_raw_fd(),
                    0,
                ) == 0
        };
        if !entered {
            return Err(io::Error::last_os_error());
        }
        if let Some(Ok(filter)) = &self.filter {
            filter.enter();
        }
        Ok(())
    }

    /// Supervises the started `process`, which may change attributes below what is `writable`. Returns
    /// the state of its confinement, for people.
    ///
    /// # Errors
    /// Confinement is required and the process could not be put behind the filter.
    pub(crate) fn supervise(
        &self,
        process: OwnedFd,
        writable: Vec<Writable>,
        mode: Containment,
    ) -> Result<String> {
        let start = |filter: &Filter| {
            let listener = filter.listener().map_err(|error| error.to_string())?;
            Supervisor::start(listener, process, writable).map_err(|error| error.to_string())
        };
        let supervised = match &self.filter {
            Some(filter) => filter.as_ref().map_err(String::clone).and_then(start),
            None => Ok(()),
        };
        let landlock = landlock();
        match (supervised, mode) {
            (Ok(()), _) => Ok(landlock),
            (Err(reason), Containment::Required) => Err(failed(reason)),
            (Err(reason), _) => Ok(format!(
                "{landlock}; modes and times of other files are open: {reason}"
            )),
        }
    }
}

/// The first Landlock ABI that governs truncation (Linux 6.2).
const TRUNCATION: i32 = 3;

const NO_LANDLOCK: &str =
    "the host's kernel has no Landlock, or it is switched off (Linux 5.13, lsm=landlock)";

/// What is said of a process that is confined.
#[must_use]
pub(crate) fn landlock() -> String {
    format!("landlock (ABI {})", landlock_abi())
}

/// What is said of a process that is not confined.
#[must_use]
pub(crate) fn none(mode: Containment) -> String {
    match mode {
        Containment::Off => String::from("off (by option)"),
        _ => String::from("none (the host's kernel has no Landlock)"),
    }
}

fn failed(reason: impl ToString) -> Error {
    Error::Containment {
        reason: reason.to_string(),
    }
}

fn create(rules: &[Rule]) -> std::result::Result<RulesetCreated, RulesetError> {
    let mut created = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for rule in rules {
        created = created.add_rule(PathBeneath::new(rule.file.as_fd(), access(rule)))?;
    }
    Ok(created)
}

/// Rights of directories cannot be granted on files.
fn access(rule: &Rule) -> BitFlags<AccessFs> {
    let access = match rule.reach {
        Reach::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Reach::Execute => AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute,
        // Devices are no files of the user's, though root could make them.
        Reach::Write => AccessFs::from_all(NEWEST) & !(AccessFs::MakeChar | AccessFs::MakeBlock),
    };
    let directory = nix::sys::stat::fstat(&rule.file)
        .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
    if directory {
        access
    } else {
        access & AccessFs::from_file(NEWEST)
    }
}
