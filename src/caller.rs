//! The caller: who, where, on what host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_contract::User;
use nix::unistd::{getegid, geteuid, getgroups};

/// The caller as the guest's user; `None` for root. Names are read from the account files, not by
/// the C library: a static executable has no name services, and a name is only a name here.
pub(crate) fn user(account: Option<String>) -> Option<User> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid == 0 {
        return None;
    }
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let name = name_of(&read("/etc/passwd"), uid)
        .or_else(|| {
            ["USER", "LOGNAME"]
                .iter()
                .find_map(|name| std::env::var(name).ok())
        })
        .filter(|name| is_usable(name))
        .unwrap_or_else(|| String::from("user"));
    let group = name_of(&read("/etc/group"), gid)
        .filter(|name| is_usable(name))
        .unwrap_or_else(|| name.clone());
    let groups = getgroups().unwrap_or_default();
    Some(User {
        name,
        uid,
        group,
        gid,
        groups: groups.iter().map(|group| group.as_raw()).collect(),
        account,
    })
}

/// The name with this number in passwd(5) or group(5).
fn name_of(text: &str, number: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        (found == number).then(|| name.to_owned())
    })
}

/// Whether nobody else is in the caller's group, as far as this host's account files tell.
pub(crate) fn has_private_group() -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    is_private(&read("/etc/passwd"), &read("/etc/group"), uid, gid)
}

/// A group that has the user's own name or number (the number is all that there is to go by where
/// accounts come from a directory), and no other member.
fn is_private(passwd: &str, group: &str, uid: u32, gid: u32) -> bool {
    let name = name_of(passwd, uid);
    let same_name = name.is_some() && name_of(group, gid) == name;
    let mut members = group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| {
            fields
                .get(2)
                .is_some_and(|number| *number == gid.to_string())
        })
        .flat_map(|fields| {
            fields
                .get(3)
                .map_or(Vec::new(), |text| text.split(',').collect())
        });
    let mut primary = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| {
            fields
                .get(3)
                .is_some_and(|number| *number == gid.to_string())
        });
    (same_name || uid == gid)
        && members.all(|member| member.is_empty() || Some(member) == name.as_deref())
        && primary.all(|fields| fields[2] == uid.to_string())
}

/// What useradd(8) would take: it goes into the appliance's account files.
fn is_usable(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
    !name.is_empty() && name.len() <= 32 && !name.starts_with('-') && name.chars().all(allowed)
}

/// Where AppPot remembers what it can find out again: `$XDG_CACHE_HOME/apppot`.
pub(crate) fn cache_directory() -> Option<PathBuf> {
    let absolute = |name| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("apppot"))
}

/// The job directory: where it really is, and the path by which the caller knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobDirectory {
    pub(crate) real: PathBuf,
    pub(crate) known_as: PathBuf,
}

impl JobDirectory {
    /// `workdir`, or the current directory.
    ///
    /// # Errors
    /// It does not exist or is no directory.
    pub(crate) fn find(workdir: Option<&Path>) -> Result<Self> {
        let known_as = match workdir {
            Some(path) if path.is_absolute() => path.to_owned(),
            Some(path) => current()?.join(path),
            None => current()?,
        };
        // Without the "." of `--workdir .`
        let known_as: PathBuf = known_as.components().collect();
        let context = || format!("cannot use the job directory '{}'", known_as.display());
        let real = std::fs::canonicalize(&known_as).with_context(context)?;
        if !real.is_dir() {
            return Err(anyhow::anyhow!("it is no directory")).with_context(context);
        }
        may_enter(&real).with_context(context)?;
        let has_dots = known_as.components().any(|part| part.as_os_str() == "..");
        Ok(JobDirectory {
            known_as: if has_dots { real.clone() } else { known_as },
            real,
        })
    }
}

/// Whether the caller, and so the guest, can use what is in a directory.
pub(crate) fn may_enter(directory: &Path) -> Result<()> {
    use nix::unistd::{access, AccessFlags};
    Ok(access(directory, AccessFlags::X_OK)?)
}

/// The current directory, by the path that the shell shows when that is true.
fn current() -> Result<PathBuf> {
    let real = std::env::current_dir().context("the current directory is gone")?;
    let shown = std::env::var_os("PWD")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let same = |path: &PathBuf| std::fs::canonicalize(path).is_ok_and(|path| path == real);
    Ok(shown.filter(same).unwrap_or(real))
}

/// The file mode creation mask. There is no reading it without setting it; the process has one
/// thread when this is called, so nobody makes a file in between.
pub(crate) fn umask() -> u32 {
    use nix::sys::stat::{umask, Mode};
    let mask = umask(Mode::empty());
    umask(mask);
    mask.bits()
}

/// This host's name.
pub(crate) fn hostname() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (!name.is_empty() && name.chars().all(allowed)).then_some(name)
}

/// Bytes of an environment file: more than fits into a contract.
const ENVIRONMENT_LIMIT: u64 = 4 << 20;

/// What `--env` and `--env-file` add to the job's environment.
///
/// # Errors
/// A name that is none, or a file that cannot be read.
pub(crate) fn environment(
    files: &[PathBuf],
    options: &[OsString],
) -> Result<Vec<(OsString, OsString)>> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut variables = Vec::new();
    for path in files {
        let text = crate::files::open_stream(path)
            .and_then(|file| crate::files::read_bounded(file, ENVIRONMENT_LIMIT))
            .with_context(|| format!("cannot read the environment file '{}'", path.display()))?;
        for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let variable = variable(OsString::from_vec(line.to_owned()));
            variables.extend(variable.with_context(|| format!("{}:{number}", path.display()))?);
        }
    }
    for option in options {
        let bytes = option.as_bytes();
        let named = variable(OsString::from_vec(bytes.to_owned()));
        variables.extend(named.with_context(|| format!("--env {}", option.to_string_lossy()))?);
    }
    Ok(variables)
}

/// `NAME=VALUE`, or `NAME` for the caller's own value, if it has one.
fn variable(text: OsString) -> Result<Option<(OsString, OsString)>> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|&byte| byte == b'=');
    let name = OsString::from_vec(bytes[..end.unwrap_or(bytes.len())].to_owned());
    if name.is_empty() || bytes.contains(&0) {
        anyhow::bail!("this is no NAME=VALUE");
    }
    Ok(match end {
        Some(end) => Some((name, OsString::from_vec(bytes[end + 1..].to_owned()))),
        None => std::env::var_os(&name).map(|value| (name, value)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_account_files() {
        let passwd = "root:x:0:0:::\n\nbroken\nada:x:1000:1000:::\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("ada"));
        assert_eq!(name_of(passwd, 7), None);
        assert!(is_usable("ada.l-2"));
        for name in ["", "-x", "a b", "a:b", "a/b", "a\nb"] {
            assert!(!is_usable(name), "{name}");
        }
    }

    #[test]
    fn a_private_group_has_no_other_member() {
        let passwd = "ada:x:1000:1000:::\njo:x:1001:100:::\nbo:x:1002:100:::\n";
        let group = "ada:x:1000:ada\nusers:x:100:\nada2:x:1003:jo\n";
        for (uid, gid, private) in [
            (1000, 1000, true),
            (1001, 100, false),
            // Unknown here: the number is that of the user.
            (7000, 7000, true),
            (7000, 7001, false),
            // Another's primary group, another's name, another member.
            (1003, 1003, false),
            (100, 100, false),
        ] {
            assert_eq!(is_private(passwd, group, uid, gid), private, "{uid}:{gid}");
        }
    }

    #[test]
    fn a_job_directory_keeps_the_callers_path() {
        let place = tempfile::tempdir().unwrap();
        let place = std::fs::canonicalize(place.path()).unwrap();
        std::fs::create_dir(place.join("real")).unwrap();
        std::os::unix::fs::symlink("real", place.join("link")).unwrap();
        let found = JobDirectory::find(Some(&place.join("link"))).unwrap();
        assert_eq!(found.known_as, place.join("link"));
        assert_eq!(found.real, place.join("real"));
        let found = JobDirectory::find(Some(&place.join("link/../real"))).unwrap();
        assert_eq!(found.known_as, place.join("real"));
        assert!(JobDirectory::find(Some(&place.join("none"))).is_err());
        std::fs::write(place.join("file"), "").unwrap();
        assert!(JobDirectory::find(Some(&place.join("file"))).is_err());
    }

    #[test]
    fn environment_options() {
        let text = |text: &str| OsString::from(text);
        let place = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(place.path(), "# comment\nA=1\n\nB=x=y\n").unwrap();
        let files = [place.path().to_owned()];
        let options = [text("C="), text("APPPOT_TEST_UNSET")];
        let variables = environment(&files, &options).unwrap();
        let expected = [("A", "1"), ("B", "x=y"), ("C", "")];
        assert_eq!(
            variables,
            expected.map(|(name, value)| (text(name), text(value)))
        );
        assert!(environment(&[], &[text("=x")]).is_err());
        assert!(environment(&[PathBuf::from("/no/such")], &[]).is_err());
    }
}
