//! Configuration files: where they are, whose word counts, what they say.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Layers, Origin, Values};
use crate::caller;
use crate::failure::hinted;
use crate::files;

/// The site's configuration.
pub(crate) const SITE: &str = "/etc/apppot/config.toml";

/// The configuration files that there are: the project's, the user's, the site's.
///
/// # Errors
/// One cannot be read, is wrong, or could have been written by somebody else.
pub(super) fn layers(jobdir: &Path) -> Result<Layers> {
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
        .map(|directory| directory.join("apppot/config.toml"));
    let own = project_file(jobdir)
        .into_iter()
        .chain(user)
        .map(|path| (path, Whose::Callers));
    let site = (PathBuf::from(SITE), Whose::Sites);
    let mut layers = Layers::new();
    for (path, whose) in own.chain([site]) {
        if let Some(values) = read(&path, whose)? {
            layers.push((Origin::File(path), values));
        }
    }
    Ok(layers)
}

/// `apppot.toml` of the job directory or the nearest directory above it.
fn project_file(jobdir: &Path) -> Option<PathBuf> {
    jobdir
        .ancestors()
        .map(|directory| directory.join("apppot.toml"))
        .find(|path| path.symlink_metadata().is_ok())
}

/// Who may have written a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Nobody but the caller and root.
    Callers,
    /// Whoever may write below /etc.
    Sites,
}

/// Bytes of a configuration file.
const LIMIT: u64 = 1 << 20;

fn read(path: &Path, whose: Whose) -> Result<Option<Values>> {
    let failed = || format!("cannot read configuration '{}'", path.display());
    // A home directory that cannot be entered (su, cron) has no configuration for this user. What can
    // be seen must be readable: it may hold what the site requires.
    match path.symlink_metadata() {
        Err(error) if is_absent(&error, whose) => return Ok(None),
        found => found.with_context(failed)?,
    };
    let file = files::open_regular(path).with_context(failed)?;
    if whose == Whose::Callers {
        trust(path, &file)?;
    }
    let text = files::read_bounded(file, LIMIT).with_context(failed)?;
    let text = String::from_utf8(text).with_context(failed)?;
    parse(&text, path).map(Some)
}

/// Refuses a file that somebody else could have written: it names programs that are executed and
/// directories that are shared. As ssh does, and as git does in somebody else's directory.
fn trust(path: &Path, file: &File) -> Result<()> {
    let failed = || format!("cannot read configuration '{}'", path.display());
    let found = Found {
        // A symbolic link is its owner's choice.
        name_owner: std::fs::symlink_metadata(path).with_context(failed)?.uid(),
        file: Access::of(&file.metadata().with_context(failed)?),
    };
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    match found.objection(uid, gid, caller::has_private_group) {
        None => Ok(()),
        Some(why) => Err(hinted(
            format!("the configuration '{}' is not followed: {why}", path.display()),
            "make it yours alone (chown, chmod go-w); or put an apppot.toml of your own, which may be \
             empty, into the job directory",
        )),
    }
}

/// What matters of a configuration file that was found.
struct Found {
    name_owner: u32,
    file: Access,
}

struct Access {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Access {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Access {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode(),
        }
    }
}

impl Found {
    /// Why the caller should not follow it. Where every user has a group of their own, the umask
    /// lets it write: harmless as long as the group is `private`.
    fn objection(&self, uid: u32, gid: u32, private: impl FnOnce() -> bool) -> Option<String> {
        let file = &self.file;
        if let Some(other) = [file.uid, self.name_owner]
            .into_iter()
            .find(|owner| ![uid, 0].contains(owner))
        {
            return Some(format!("it belongs to another user (uid {other})"));
        }
        if file.mode & 0o002 != 0 {
            return Some(String::from("every user may write to it"));
        }
        let group_writes = file.mode & 0o020 != 0;
        (group_writes && !(file.gid == gid && private()))
            .then(|| format!("its group (gid {}) may write to it", file.gid))
    }
}

fn is_absent(error: &std::io::Error, whose: Whose) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match error.kind() {
        NotFound | NotADirectory => true,
        // What the site demands must not be missed.
        PermissionDenied => whose == Whose::Callers,
        _ => false,
    }
}

fn parse(text: &str, path: &Path) -> Result<Values> {
    let keys = "the keys are those that 'apppot config' lists";
    let mut values: Values = files::toml(text, path, keys)?;
    if let Some(name) = values
        .env
        .iter()
        .flatten()
        .map(|(name, _)| name)
        .find(|name| !is_name(name))
    {
        let line = line_of_key(text, name);
        anyhow::bail!(
            "{}:{line}: '{name}' cannot be a variable's name",
            path.display()
        );
    }
    // A relative path is relative to the file that names it.
    let base = path.parent().unwrap_or(Path::new("/"));
    if let Some(kernel) = &mut values.kernel {
        *kernel = base.join(&kernel);
    }
    if let Some(image) = &mut values.image {
        let path = base.join(&image);
        // A word that is no file there is the host, or a name in the store.
        let is_name = crate::image::store::is_name(image) && !path.exists();
        if image.as_os_str() != "host" && !is_name {
            *image = path;
        }
    }
    Ok(values)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The line of a key that is in quotes, as those are that cannot be a name; else the first one.
fn line_of_key(text: &str, key: &str) -> usize {
    let starts = |line: &str| {
        let rest = line.trim_start().strip_prefix(['"', '\'']);
        rest.and_then(|rest| rest.strip_prefix(key))
            .is_some_and(|rest| rest.starts_with(['"', '\'']))
    };
    text.lines().position(starts).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::units::Size;
    use apppot_backends::spec::Containment;

    #[test]
    fn files_are_read_with_every_key() {
        let text = "image = 'a.img'\nbackend = 'uml'\nconnect = 'qemu:///session'\nkernel = '/k'\nmemory = '1G'\ncpus = 2\n\
            containment = 'required'\nseccomp = 'off'\nnetwork = 'user'\ntime-limit = '1h'\ngrace = 3\n\
            channel = 'link'\nec2-bucket = 'b'\nec2-type = 't'\nec2-subnet = 's'\nec2-groups = ['g']\n\
            ec2-key = 'k'\nec2-spot = true\nec2-disk = '20G'\nbind = ['/data:ro']\nrequire-signature = true\n\
            trusted-keys = ['RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3']\n\
            [env]\nA = 'b'\n";
        let values = parse(text, Path::new("/project/apppot.toml")).unwrap();
        assert_eq!(values.image.as_deref(), Some(Path::new("/project/a.img")));
        assert_eq!(values.memory, Some(Size(1 << 30)));
        assert_eq!(values.containment, Some(Containment::Required));
        assert_eq!(values.grace.unwrap().0.as_secs(), 3);
        let origin = Origin::File(PathBuf::from("/c.toml"));
        let rows = Config::merge(&vec![(origin, values)]).rows();
        assert!(rows.iter().all(|row| row.origin == "/c.toml"), "{rows:?}");
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        for (text, line, what) in [
            ("memory = '1G'\nmemroy = '2G'\n", 2, "memroy"),
            ("\n\nmemory = 'much'\n", 3, "much"),
            ("containment = 'maybe'\n", 1, "maybe"),
            ("network = 'bridge'\n", 1, "bridge"),
            ("image = [\n", 2, "array"),
            ("grace = -1\n", 1, "'-1' is no duration"),
            ("memory = true\n", 1, "neither a number nor text"),
            (
                "[env]\nA = 'x'\n'' = 'x'\n",
                3,
                "'' cannot be a variable's name",
            ),
            ("[env]\n\"A=B\" = 'x'\n", 2, "'A=B'"),
            ("trusted-keys = ['RWx']\n", 1, "RWx"),
        ] {
            let error = format!("{:#}", parse(text, Path::new("/c.toml")).unwrap_err());
            assert!(error.starts_with(&format!("/c.toml:{line}: ")), "{error}");
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_site_s_file_that_cannot_be_read_is_an_error() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(is_absent(&denied, Whose::Callers));
        assert!(!is_absent(&denied, Whose::Sites));
    }

    #[test]
    fn what_others_could_have_written_is_not_followed() {
        const OWN: (u32, u32) = (1000, 1000);
        let objection = |name_owner, uid, gid, mode, private| {
            let file = Access { uid, gid, mode };
            Found { name_owner, file }.objection(OWN.0, OWN.1, || private)
        };
        for (name_owner, uid, gid, mode, private) in [
            (1000, 1000, 1000, 0o600, false),
            (1000, 1000, 50, 0o644, false),
            (0, 0, 0, 0o644, false),
            (1000, 1000, 1000, 0o664, true),
        ] {
            assert_eq!(objection(name_owner, uid, gid, mode, private), None);
        }
        for (name_owner, uid, gid, mode, private, why) in [
            (1001, 1001, 1000, 0o600, true, "uid 1001"),
            (1001, 1000, 1000, 0o600, true, "uid 1001"),
            (1000, 1000, 1000, 0o666, true, "every user"),
            (0, 0, 0, 0o666, true, "every user"),
            (1000, 1000, 1000, 0o664, false, "gid 1000"),
            (1000, 1000, 50, 0o664, true, "gid 50"),
        ] {
            let found = objection(name_owner, uid, gid, mode, private);
            assert!(
                found.as_ref().is_some_and(|text| text.contains(why)),
                "{found:?}"
            );
        }
    }
}
