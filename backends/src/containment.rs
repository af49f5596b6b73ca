//! Containment: what a hypervisor's process may reach (Landlock,
//! `Documentation/userspace-api/landlock.rst`).
//!
//! The paper promises that an appliance does no more harm than its user's own processes (R3). This
//! is stronger: the process reads, writes, lists and makes only the files that the machine needs,
//! whatever the guest's root does. Landlock does not govern modes, owners and times: these can be
//! changed of the user's other files, and their existence seen. UML's own `hostfs=` option is no confinement: `..` and symbolic links leave it.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use landlock::{
    Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, ABI,
};

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

/// One path that may be reached.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The file or directory.
    pub(crate) file: OwnedFd,
    /// Its path, for people.
    pub(crate) shown: String,
    /// What for.
    pub(crate) reach: Reach,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = match self.reach {
            Reach::Read => "read",
            Reach::Execute => "execute",
            Reach::Write => "write",
        };
        write!(f, "{reach} {}", self.shown)
    }
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

/// Makes the ruleset of `rules`; `None` when there is to be no confinement.
///
/// # Errors
/// Confinement is required and the host's kernel has none, or it refuses the rules.
pub(crate) fn ruleset(rules: &[Rule], mode: Containment) -> Result<Option<OwnedFd>> {
    let failed = |reason: String| Error::Containment { reason };
    if mode == Containment::Off {
        return Ok(None);
    }
    if landlock_abi() == 0 {
        return match mode {
            Containment::Required => Err(failed(String::from(
                "the host's kernel has no Landlock, or it is switched off (Linux 5.13, lsm=landlock)",
            ))),
            _ => Ok(None),
        };
    }
    let created = create(rules).map_err(|error| failed(error.to_string()))?;
    Ok(created.into())
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
        Reach::Write => AccessFs::from_all(NEWEST),
    };
    let directory = nix::sys::stat::fstat(&rule.file)
        .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
    if directory {
        access
    } else {
        access & AccessFs::from_file(NEWEST)
    }
}

/// The state of confinement, for the report and the doctor.
#[must_use]
pub fn describe(confined: bool, mode: Containment) -> String {
    match (confined, mode) {
        (true, _) => format!("landlock (ABI {})", landlock_abi()),
        (false, Containment::Off) => String::from("off (by option)"),
        (false, _) => String::from("none (the host's kernel has no Landlock)"),
    }
}
