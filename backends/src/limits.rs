//! What the host gives: examined before boot, because a guest that runs out of it later dies
//! without a word.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::resource::{getrlimit, Resource, RLIM_INFINITY};
use nix::sys::statfs::{fstatfs, FsType, TMPFS_MAGIC};

use crate::{Error, Result};

/// The least memory that a machine is given: kernels boot in less, programs do not run in less.
pub const LEAST_MEMORY: u64 = 48 << 20;

/// What the hypervisor's process maps beside the guest's memory.
const OWN_MAPPINGS: u64 = 256 << 20;

/// A directory whose filesystem can hold guest memory: an unlinked file, mapped executable.
#[derive(Debug)]
pub struct Backing {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes free there.
    pub free: u64,
    /// Whether it is in memory rather than on a disk.
    pub is_memory: bool,
    directory: File,
}

/// Why a directory cannot hold guest memory.
#[derive(Debug)]
pub struct Unfit {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// The directories that are looked at, in order: memory first, then what the user names.
fn candidates() -> Vec<PathBuf> {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from);
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in std::iter::once(PathBuf::from("/dev/shm"))
        .chain(named)
        .chain(["/tmp", "/var/tmp"].map(PathBuf::from))
    {
        if path.is_absolute() && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// Looks at every candidate: those that can hold guest memory, and why the others cannot.
#[must_use]
pub fn backings() -> (Vec<Backing>, Vec<Unfit>) {
    let mut fit = Vec::new();
    let mut unfit = Vec::new();
    for path in candidates() {
        match examine(&path) {
            Ok(backing) => fit.push(backing),
            Err(reason) => unfit.push(Unfit { path, reason }),
        }
    }
    (fit, unfit)
}

/// How many bytes of guest memory have room, up to `memory`; `None` when there is no place for any.
/// Looking at a place makes a file there, so no more are looked at than must be.
#[must_use]
pub fn room_for(memory: u64) -> Option<u64> {
    let mut most = None;
    for backing in candidates().iter().filter_map(|path| examine(path).ok()) {
        most = most.max(Some(backing.free.min(memory)));
        if most == Some(memory) {
            break;
        }
    }
    most
}

/// The first place with room for `memory` bytes.
///
/// # Errors
/// No place has room: what each one lacks and the remedy.
pub fn choose_backing(memory: u64) -> Result<Backing> {
    let mut reasons = Vec::new();
    let mut most = 0;
    for path in candidates() {
        match examine(&path) {
            Ok(backing) if backing.free >= memory => return Ok(backing),
            Ok(backing) => {
                most = most.max(backing.free);
                let free = backing.free >> 20;
                reasons.push(format!("{} has {free} MiB free", path.display()));
            }
            Err(reason) => reasons.push(format!("{}: {reason}", path.display())),
        }
    }
    Err(Error::Memory {
        memory,
        reason: reasons.join("; "),
        hint: format!(
            "set TMPDIR to a directory on a filesystem with {} MiB free that is not mounted noexec{}",
            memory >> 20,
            match most >> 20 {
                0 => String::new(),
                most => format!(", or pass --memory {most}M"),
            }
        ),
    })
}

fn examine(path: &Path) -> std::result::Result<Backing, String> {
    let say = |error: io::Error| error.to_string();
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)
        .map_err(say)?;
    let temporary = temporary_in(&directory).map_err(say)?;
    executable(&temporary).map_err(|_| String::from("mounted noexec"))?;
    let stat = fstatfs(&directory).map_err(|errno| say(errno.into()))?;
    // statfs(2) has signed sizes that are never negative.
    let free = stat.blocks_available() * stat.block_size().unsigned_abs();
    Ok(Backing {
        path: path.to_owned(),
        free,
        is_memory: stat.filesystem_type() == TMPFS_MAGIC || stat.filesystem_type() == RAMFS,
        directory,
    })
}

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS: FsType = FsType(0x8584_58f6);

fn temporary_in(directory: &File) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o700)
        .custom_flags(libc::O_TMPFILE | libc::O_EXCL | libc::O_CLOEXEC)
        .open(crate::process::descriptor_path(directory.as_raw_fd()))
}

/// Whether `file` can be mapped executable, as UML maps its memory.
fn executable(file: &File) -> io::Result<()> {
    const LEN: usize = 4096;
    file.set_len(LEN as u64)?;
    // SAFETY: a new mapping of a file of that length, unmapped at once and never read.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::munmap(address, LEN);
    }
    Ok(())
}

/// A private directory for the guest's memory file.
#[derive(Debug)]
pub struct PrivateDirectory {
    /// The directory, for the hypervisor to inherit.
    pub descriptor: OwnedFd,
    /// Its name, when it still has one: whoever made it removes it at the end.
    pub path: Option<PathBuf>,
}

impl Backing {
    /// Makes a directory there that only this machine reaches. On a tmpfs it is removed at once
    /// (unnamed files can still be made in it).
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn private_directory(&self) -> Result<PrivateDirectory> {
        let failed = Error::file("make a directory for guest memory in", &self.path);
        self.try_private_directory().map_err(failed)
    }

    fn try_private_directory(&self) -> io::Result<PrivateDirectory> {
        let path = nix::unistd::mkdtemp(&self.path.join("apppot-XXXXXX"))?;
        let removed = || std::fs::remove_dir(&path);
        let directory = match File::open(&path) {
            Ok(directory) => directory,
            Err(error) => {
                removed()?;
                return Err(error);
            }
        };
        if self.is_memory {
            removed()?;
            if temporary_in(&directory).is_ok() {
                return Ok(PrivateDirectory {
                    descriptor: directory.as_fd().try_clone_to_owned()?,
                    path: None,
                });
            }
            std::fs::create_dir(&path)?;
        }
        let directory = File::open(&path)?;
        Ok(PrivateDirectory {
            descriptor: directory.into(),
            path: Some(path),
        })
    }

    /// Makes a file there that has no name and never gets one.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn unnamed_file(&self) -> Result<File> {
        temporary_in(&self.directory)
            .map_err(Error::file("make a file for guest memory in", &self.path))
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Checks `memory` bytes of guest memory against this process's own limits.
///
/// # Errors
/// Too little for a machine, or more than a limit allows: which one, and how to change it.
pub fn check_memory(memory: u64) -> Result<()> {
    let refuse = |reason: String, hint: &str| {
        Err(Error::Memory {
            memory,
            reason,
            hint: hint.to_owned(),
        })
    };
    if memory < LEAST_MEMORY {
        return refuse(
            format!("a machine needs at least {} MiB", LEAST_MEMORY >> 20),
            "sizes are written as 512M or 2G",
        );
    }
    for (resource, name, option, extra) in [
        (
            Resource::RLIMIT_AS,
            "address space (RLIMIT_AS)",
            "-v",
            OWN_MAPPINGS,
        ),
        (Resource::RLIMIT_FSIZE, "file size (RLIMIT_FSIZE)", "-f", 0),
    ] {
        let (soft, _) = getrlimit(resource).map_err(Error::system("read resource limits"))?;
        if soft != RLIM_INFINITY && soft < memory.saturating_add(extra) {
            return refuse(
                format!("this process is limited to {} MiB of {name}", soft >> 20),
                &format!("raise it with 'ulimit {option}', or pass a smaller --memory"),
            );
        }
    }
    if let Some((limit, path)) = cgroup_memory() {
        if limit < memory {
            return refuse(
                format!(
                    "cgroup {} is limited to {} MiB",
                    path.display(),
                    limit >> 20
                ),
                "ask the batch system for more memory, or pass a smaller --memory",
            );
        }
    }
    Ok(())
}

/// Checks that a process which inherits `files` can be started (see [`crate::process`]).
///
/// # Errors
/// The hard limit is too low: the limit, and how to change it.
pub fn check_open_files(files: usize) -> Result<()> {
    let least = crate::process::highest_descriptor(files);
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::system("read resource limits"))?;
    if hard >= least {
        return Ok(());
    }
    Err(Error::Limit {
        name: "open files (RLIMIT_NOFILE)",
        limit: hard,
        least,
        hint: format!(
            "remove the 'ulimit -n' that lowers it, or have the administrator or the batch system \
             allow {least}"
        ),
    })
}

/// The most memory that this process's limits and its cgroup allow, bytes.
#[must_use]
pub fn most_memory() -> u64 {
    let limit = |resource, own: u64| match getrlimit(resource) {
        Ok((soft, _)) if soft != RLIM_INFINITY => soft.saturating_sub(own),
        _ => u64::MAX,
    };
    let cgroup = cgroup_memory().map_or(u64::MAX, |(limit, _)| limit);
    limit(Resource::RLIMIT_AS, OWN_MAPPINGS)
        .min(limit(Resource::RLIMIT_FSIZE, 0))
        .min(cgroup)
}

/// The smallest memory limit of this process's cgroup and those above it: bytes, and whose. It is looked
/// for once.
#[must_use]
pub fn cgroup_memory() -> Option<(u64, PathBuf)> {
    static FOUND: OnceLock<Option<(u64, PathBuf)>> = OnceLock::new();
    let found = FOUND.get_or_init(|| cgroup_memory_below(Path::new("/")));
    found.clone()
}

fn cgroup_memory_below(root: &Path) -> Option<(u64, PathBuf)> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut smallest: Option<(u64, PathBuf)> = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let directory = root.join(base).join(ancestor);
            let limit = std::fs::read_to_string(directory.join(file));
            let limit = limit.ok().and_then(|text| text.trim().parse().ok());
            if let Some(limit) = limit.filter(|&limit| is_smaller(limit, smallest.as_ref())) {
                smallest = Some((limit, Path::new("/").join(ancestor)));
            }
        }
    }
    smallest
}

/// cgroup v1 says "no limit" as a number near 2^63.
fn is_smaller(limit: u64, than: Option<&(u64, PathBuf)>) -> bool {
    limit < 1 << 60 && than.is_none_or(|(other, _)| limit < *other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cgroup_limit_upwards_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(cgroup_memory_below(root.path()), None);
        put("proc/self/cgroup", "0::/slurm/job_1/step\n");
        put("sys/fs/cgroup/memory.max", "max\n");
        put("sys/fs/cgroup/slurm/job_1/memory.max", "1048576\n");
        put("sys/fs/cgroup/slurm/job_1/step/memory.max", "2097152\n");
        assert_eq!(
            cgroup_memory_below(root.path()),
            Some((1 << 20, PathBuf::from("/slurm/job_1")))
        );
        put("proc/self/cgroup", "4:memory:/a\n1:cpu:/b\n");
        put(
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(cgroup_memory_below(root.path()), None);
    }

    #[test]
    fn too_little_memory_is_refused() {
        let error = check_memory(3).unwrap_err();
        assert!(error.to_string().contains("3 bytes"), "{error}");
        assert!(error.hint().is_some());
    }

    #[test]
    fn more_than_any_filesystem_has_is_refused_with_what_there_is() {
        let error = choose_backing(1 << 60).unwrap_err().to_string();
        assert!(error.contains("MiB free"), "{error}");
    }

    #[test]
    fn a_private_directory_has_no_name_where_it_can_do_without() {
        let place = tempfile::tempdir().unwrap();
        let mut backing = examine(place.path()).unwrap();
        for is_memory in [true, false] {
            backing.is_memory = is_memory;
            let private = backing.private_directory().unwrap();
            temporary_in(&File::from(private.descriptor.try_clone().unwrap())).unwrap();
            // Whether the temporary directory is a tmpfs is the machine's affair.
            if let Some(path) = private.path {
                std::fs::remove_dir(path).unwrap();
            }
            assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        }
    }
}
