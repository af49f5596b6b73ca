//! What a built image keeps of the system that it was built in.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use apppot_snapshot::content::Contents;
use apppot_snapshot::entry::{is_within, Entry, Kind, Time};
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Ext4, Found, Listing, Tree};

use super::STAGING;

/// What is left out with all that is below.
const LEFT_OUT: [&str; 5] = [
    STAGING,
    // How this host reaches the network.
    "etc/apt/apt.conf.d/99mmdebstrap",
    // What mmdebstrap took from this host.
    "etc/hostname",
    "etc/resolv.conf",
    "lost+found",
];

/// Directories that stay, empty.
const EMPTIED: [&str; 7] = [
    "dev",
    "run",
    "tmp",
    "var/tmp",
    "var/cache/apt/archives",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
];

/// Files that differ with every build, in directories that stay.
const EMPTIED_OF_FILES: [&str; 1] = ["var/log"];

/// Copies that programs make before they change a file.
const OLD: [&str; 11] = [
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dpkg/status-old",
];

/// The tree of a system, without what nobody else needs. What has changed during the build is as old as the
/// newest file of a package, so that the same packages give the same image.
pub(super) struct Finished {
    tree: Ext4,
    began: Time,
    newest: Time,
}

impl Finished {
    /// `began`: when the build began; everything older came with a package.
    pub(super) fn new(tree: Ext4, began: Time) -> Result<Self> {
        let listing = tree.walk(&Rules::everything())?;
        let files = listing.found.iter().filter(|found| {
            let from_a_package = is_within(&found.entry.path, b"usr");
            let is_file = matches!(found.entry.kind, Kind::File(_));
            from_a_package && is_file && found.entry.meta.mtime < began
        });
        let newest = files.map(|found| found.entry.meta.mtime).max();
        Ok(Finished {
            tree,
            began,
            newest: newest.unwrap_or(began),
        })
    }
}

impl Tree for Finished {
    fn walk(&self, rules: &Rules) -> apppot_snapshot::Result<Listing> {
        let mut listing = self.tree.walk(rules)?;
        let found = &mut listing.found;
        leave_out(found);
        for meta in found.iter_mut().map(|found| &mut found.entry.meta) {
            if meta.mtime >= self.began {
                meta.mtime = self.newest;
            }
        }
        Ok(listing)
    }

    fn open(&self, found: &Found) -> apppot_snapshot::Result<Box<dyn Contents + '_>> {
        self.tree.open(found)
    }
}

/// Leaves out what does not stay. Of a file with other names the first one that stays is the file then.
fn leave_out(all: &mut Vec<Found>) {
    let mut gone: HashMap<Vec<u8>, Kind> = HashMap::new();
    let mut heirs: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    all.retain_mut(|found| {
        let Entry { path, kind, .. } = &mut found.entry;
        let kept = stays(path, kind);
        match kind {
            Kind::Link(first) if kept => {
                if let Some(heir) = heirs.get(first) {
                    first.clone_from(heir);
                } else if let Some(file) = gone.remove(first) {
                    heirs.insert(first.clone(), path.clone());
                    *kind = file;
                }
            }
            Kind::Directory | Kind::Link(_) => {}
            _ if kept => {}
            _ => {
                gone.insert(path.clone(), kind.clone());
            }
        }
        kept
    });
}

/// Whether a file of this path can be put into an image.
pub(super) fn may_be_put(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = path.strip_prefix("/").unwrap_or(path);
    stays(path.as_os_str().as_bytes(), &Kind::Fifo)
}

fn stays(path: &[u8], kind: &Kind) -> bool {
    let within = |directory: &str| is_within(path, directory.as_bytes());
    let below = |directory: &&str| within(directory) && path != directory.as_bytes();
    let is_directory = matches!(kind, Kind::Directory);
    !(LEFT_OUT.into_iter().any(within)
        || EMPTIED.iter().any(below)
        || (!is_directory && EMPTIED_OF_FILES.iter().any(below))
        || OLD.into_iter().any(|old| path == old.as_bytes()))
}

/// The time now, as files have it; less a second, since kernels stamp files by a clock that is a little
/// behind.
pub(super) fn now() -> Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    Time {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - 1,
        nanoseconds: now.subsec_nanos(),
    }
}

/// A path in the image as its files' names are written: without the first slash.
pub(super) fn name(path: &Path) -> Result<&str> {
    use anyhow::Context;
    let text = path.to_str();
    text.with_context(|| format!("the path '{}' is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apppot_image::{Filesystem, Options};

    /// What is left of files whose names are one file's.
    fn left(names: &[&str], modified: i64) -> Vec<(String, Kind, Vec<u8>)> {
        let file = tempfile::tempfile().unwrap();
        let mut filesystem =
            Filesystem::new(file.try_clone().unwrap(), Options::default()).unwrap();
        filesystem.add_file(names[0], 0o755, b"content").unwrap();
        for name in &names[1..] {
            filesystem.add_link(name, names[0]).unwrap();
        }
        filesystem.finish().unwrap();
        let began = Time {
            seconds: modified,
            nanoseconds: 0,
        };
        let tree = Ext4::open(Box::new(file), 0).unwrap();
        let finished = Finished::new(tree, began).unwrap();
        let found = finished.walk(&Rules::everything()).unwrap().found;
        let files = found.iter().filter(|found| !found.entry.is_directory());
        let read = |found: &Found| {
            let mut bytes = Vec::new();
            if let Kind::File(_) = found.entry.kind {
                let file = finished.open(found).unwrap();
                bytes.resize(file.size() as usize, 0);
                file.read_at(&mut bytes, 0).unwrap();
            }
            bytes
        };
        let path = |found: &Found| String::from_utf8(found.entry.path.clone()).unwrap();
        files
            .map(|found| (path(found), found.entry.kind.clone(), read(found)))
            .collect()
    }

    #[test]
    fn a_file_lives_on_under_the_names_that_stay() {
        let names = ["tmp/x", "tmp/y", "usr/bin/a", "usr/bin/b", "usr/bin/c"];
        let found = left(&names, 0);
        let paths: Vec<&str> = found.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["usr/bin/a", "usr/bin/b", "usr/bin/c"]);
        assert!(matches!(found[0].1, Kind::File(_)));
        assert_eq!(found[0].2, b"content");
        for other in &found[1..] {
            assert_eq!(other.1, Kind::Link(b"usr/bin/a".to_vec()));
        }
        assert_eq!(left(&["tmp/x", "var/tmp/x"], 0), []);
    }

    #[test]
    fn what_stays() {
        let stays = |path: &str, kind: &Kind| super::stays(path.as_bytes(), kind);
        let file = Kind::Symlink(Vec::new());
        for (path, kept) in [
            ("etc/passwd", true),
            ("etc/passwd-", false),
            ("etc/hostname", false),
            ("tmp/x", false),
            ("var/log/apt/history.log", false),
            ("var/cache/debconf/config.dat", true),
            (".apppot-build/files/x", false),
        ] {
            assert_eq!(stays(path, &file), kept, "{path}");
        }
        assert!(may_be_put(Path::new("/srv/x")) && !may_be_put(Path::new("/tmp/x")));
        assert!(stays("tmp", &Kind::Directory));
        assert!(stays("var/log/apt", &Kind::Directory));
        assert!(!stays("var/lib/apt/lists/partial", &Kind::Directory));
    }
}
