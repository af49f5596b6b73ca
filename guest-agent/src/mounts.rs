//! Filesystems: the agent's own, the appliance's root, the host's directories.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use apppot_contract::{Contract, Mount, Root, Writes};
use nix::mount::{mount, MsFlags};

use crate::devices;
use crate::failure::{Failure, Step};
use crate::files;

// The initramfs has these directories (backends/src/initramfs.rs).

/// Where the appliance's root is put together.
pub(crate) const ROOT: &str = "/root";
/// The appliance's root as it is, below the overlay.
const LOWER: &str = "/lower";
/// The overlay's upper and work directories, in memory.
const UPPER: &str = "/upper";

const NONE: Option<&str> = None;

/// What the agent itself needs; [`system`] moves them into the appliance's root.
pub(crate) fn early() -> io::Result<()> {
    for (target, filesystem, flags) in [
        ("/proc", "proc", QUIET),
        ("/dev", "devtmpfs", MsFlags::MS_NOSUID),
    ] {
        // The initramfs has the directories. Some kernels mount /dev by themselves.
        match mount(Some(filesystem), target, Some(filesystem), flags, NONE) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(errno) => return Err(annotate(target, errno)),
        }
    }
    Ok(())
}

/// Nothing in these can be executed or is a device.
const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NODEV);

/// What says which devices there are, for the agent itself. The root gets one of its own.
pub(crate) fn sysfs() -> io::Result<()> {
    fs::create_dir_all("/sys")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), QUIET, NONE)
        .map_err(|errno| annotate("/sys", errno))
}

/// Mounts the appliance's root filesystem on [`ROOT`], with the overlay when writes are to vanish.
pub(crate) fn root(root: Option<&Root>) -> Result<(), Failure> {
    let step = "mounting the root filesystem";
    let root = root.ok_or_else(|| Failure::new(step, "the contract names none (apppot.root)"))?;
    let named = format!(
        "{step}: {} on {}",
        root.filesystem,
        Path::new(&root.source).display()
    );
    match root.writes {
        Writes::Device => {
            mount_from_host(&root.filesystem, &root.source, ROOT, MsFlags::empty()).step(named)
        }
        Writes::Memory => {
            mount_from_host(&root.filesystem, &root.source, LOWER, MsFlags::MS_RDONLY)
                .step(named)?;
            overlay().step("mounting the overlay")
        }
    }
}

/// Mounts what the hypervisor provides: a block device, or a directory by a channel.
fn mount_from_host(
    filesystem: &str,
    source: &OsStr,
    target: impl AsRef<Path>,
    flags: MsFlags,
) -> nix::Result<()> {
    let (device, options) = match filesystem {
        // Its source is an option, not a device.
        "hostfs" => (None, Some(source)),
        "9p" if target.as_ref() == Path::new(LOWER) => {
            (Some(source), Some(OsStr::new(NINE_P_BELOW)))
        }
        "9p" => (Some(source), Some(OsStr::new(NINE_P))),
        _ => (Some(source), None),
    };
    devices::wait_for(Path::new(source));
    mount(device, target.as_ref(), Some(filesystem), flags, options)
}

/// Large messages: one costs the same however much it carries. No caching beyond what is open:
/// the host changes the files as well.
const NINE_P: &str = "trans=virtio,version=9p2000.L,msize=512000";

/// What is below an overlay stays as it is: it is read ahead and kept, where else each page of a program
/// would be a message.
const NINE_P_BELOW: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";

fn overlay() -> io::Result<()> {
    mount(
        Some("apppot"),
        UPPER,
        Some("tmpfs"),
        MsFlags::empty(),
        // Less than all: whoever fills it shall be told so, before memory is out and the job is killed.
        Some("mode=0755,size=80%"),
    )?;
    let (upper, work) = (format!("{UPPER}/upper"), format!("{UPPER}/work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // The root directory's metadata are the upper one's.
    let below = fs::metadata(LOWER)?;
    chown(&upper, Some(below.uid()), Some(below.gid()))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(below.mode() & 0o7777))?;
    File::open(&upper)?.set_modified(below.modified()?)?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    mount(
        Some("apppot"),
        ROOT,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    Ok(())
}

/// Filesystems of every Linux system, below [`ROOT`].
pub(crate) fn system() -> io::Result<()> {
    let memory = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let unexecuted = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for own in ["/proc", "/dev"] {
        on_directory(&format!("{ROOT}{own}"), |target| {
            mount(Some(own), target, NONE, MsFlags::MS_MOVE, NONE)
        })?;
    }
    for (target, filesystem, flags, options) in [
        ("/sys", "sysfs", QUIET, None),
        (
            "/dev/pts",
            "devpts",
            unexecuted,
            Some("gid=5,mode=620,ptmxmode=666"),
        ),
        ("/dev/shm", "tmpfs", memory, Some("mode=1777")),
        ("/run", "tmpfs", memory, Some("mode=0755")),
    ] {
        on_directory(&format!("{ROOT}{target}"), |target| {
            mount(Some(filesystem), target, Some(filesystem), flags, options)
        })?;
    }
    cpuinfo()?;
    device_links()
}

/// Stock User-Mode Linux names no cores in /proc/cpuinfo, and then ps(1) of procps 4.0 has nothing to start
/// from: the same text with a core for each processor takes its place.
fn cpuinfo() -> io::Result<()> {
    let target = format!("{ROOT}/proc/cpuinfo");
    let text = String::from_utf8_lossy(&files::read(Path::new(&target))?).into_owned();
    if !text.contains("User Mode Linux") || text.contains("core id") {
        return Ok(());
    }
    fs::write("/cpuinfo", with_cores(&text))?;
    fs::set_permissions("/cpuinfo", fs::Permissions::from_mode(0o444))?;
    mount(
        Some("/cpuinfo"),
        target.as_str(),
        NONE,
        MsFlags::MS_BIND,
        NONE,
    )
    .map_err(|errno| annotate("/proc/cpuinfo", errno))
}

fn with_cores(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        out.push_str(line);
        out.push('\n');
        let number = line
            .strip_prefix("processor")
            .and_then(|rest| rest.split_once(':'));
        if let Some((_, number)) = number {
            out.push_str(&format!("core id\t\t: {}\n", number.trim()));
        }
    }
    out
}

/// Mounts on `target`, and makes the directory when that fails for want of it: a system call less
/// for each that is there.
fn on_directory(target: &str, mount: impl Fn(&str) -> nix::Result<()>) -> io::Result<()> {
    match mount(target) {
        Err(nix::Error::ENOENT) => {
            fs::create_dir_all(target)?;
            mount(target)
        }
        result => result,
    }
    .map_err(|errno| annotate(&target[ROOT.len()..], errno))
}

/// Links that every system has in /dev and devtmpfs does not make.
fn device_links() -> io::Result<()> {
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let path = format!("{ROOT}/dev/{name}");
        match std::os::unix::fs::symlink(target, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Where the job finds the agent under its other names, in the running system.
pub(crate) const TOOLS: &str = "/run/apppot-bin";

/// Shows the agent to the job as `apppot-snap`. The initramfs that holds it is out of reach later.
pub(crate) fn tools() -> io::Result<()> {
    let directory = format!("{ROOT}{TOOLS}");
    // The kernel gives PID 1 the umask 022.
    fs::DirBuilder::new().mode(0o755).create(&directory)?;
    let tool = format!("{directory}/apppot-snap");
    File::create(&tool)?;
    mount(Some("/init"), tool.as_str(), NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

/// Makes [`ROOT`] the root of everything (`Documentation/filesystems/ramfs-rootfs-initramfs.rst`:
/// the initramfs cannot be pivoted away).
pub(crate) fn enter_root() -> io::Result<()> {
    std::env::set_current_dir(ROOT)?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")
}

/// What the job writes that outlives the machine: filesystems whose errors in writing back count.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Mount points, and their directories opened before anything was written.
    filesystems: Vec<(PathBuf, File)>,
}

/// Mounts the host's directories, and sees to the job directory and the temporary directory.
pub(crate) fn shares(contract: &Contract) -> Result<Kept, Failure> {
    let mut kept = Kept {
        filesystems: Vec::new(),
    };
    if contract
        .root
        .as_ref()
        .is_some_and(|root| root.writes == Writes::Device)
    {
        kept.watch(Path::new("/"))
            .step("opening the root filesystem")?;
    }
    for share in &contract.mounts {
        let target = share.target.display();
        let mounted = mount_share(share).and_then(|()| match share.read_only {
            true => Ok(()),
            false => kept.watch(&share.target),
        });
        mounted.step(format!("mounting the host directory on {target}"))?;
    }
    write_back_soon();
    // The job directory is the first of the mounts, unless its files travel.
    let mounted = contract.mounts.first().map(|mount| &mount.target);
    let files = contract.files.as_ref().map(|files| &files.target);
    if let Some(target) = files.or(mounted) {
        link_job_directory(&contract.jobdir, target).step(format!(
            "making the job directory {}",
            contract.jobdir.display()
        ))?;
    }
    if let Some(tmpdir) = &contract.tmpdir {
        make_tmpdir(tmpdir).step(format!("making the directory {}", tmpdir.display()))?;
    }
    Ok(kept)
}

impl Kept {
    fn watch(&mut self, target: &Path) -> io::Result<()> {
        let directory = File::open(target)?;
        self.filesystems.push((target.to_owned(), directory));
        Ok(())
    }

    /// Writes everything back. A host disk that is full shows only here: the command's own writes
    /// went into the guest's memory.
    pub(crate) fn write_back(self) -> Result<(), Failure> {
        for (target, directory) in self.filesystems {
            // SAFETY: syncfs on an open descriptor. Its error is of any write since it was opened.
            let result = match unsafe { libc::syncfs(directory.as_raw_fd()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            };
            result.step(format!("writing the job's files in {}", target.display()))?;
        }
        Ok(())
    }
}

/// Changes reach the host's files within about a second instead of half a minute: somebody may be
/// watching them there, and a machine that is killed loses less.
fn write_back_soon() {
    for name in ["dirty_expire_centisecs", "dirty_writeback_centisecs"] {
        // A kernel without such a setting only is slower.
        let _ = fs::write(format!("/proc/sys/vm/{name}"), "50");
    }
}

fn mount_share(share: &Mount) -> io::Result<()> {
    let flags = match share.read_only {
        true => MsFlags::MS_RDONLY,
        false => MsFlags::empty(),
    };
    if !share.channel.is_live() {
        return Err(io::Error::other("its channel is for files, not for mounts"));
    }
    let mount = || mount_from_host(share.channel.word(), &share.source, &share.target, flags);
    match mount() {
        Err(nix::Error::ENOENT) => {
            fs::create_dir_all(&share.target)?;
            mount()
        }
        result => result,
    }
    .map_err(io::Error::from)
}

/// The caller may have come to the job directory through a symbolic link that the appliance does
/// not have: the path that the caller knows leads to the mounted directory.
fn link_job_directory(jobdir: &Path, mounted: &Path) -> io::Result<()> {
    if jobdir == mounted || jobdir.exists() {
        return Ok(());
    }
    if let Some(parent) = jobdir.parent() {
        fs::create_dir_all(parent)?;
    }
    std::os::unix::fs::symlink(mounted, jobdir)
}

fn make_tmpdir(tmpdir: &Path) -> io::Result<()> {
    if !tmpdir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o777)
            .create(tmpdir)?;
        fs::set_permissions(tmpdir, fs::Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

fn annotate(what: &str, errno: nix::Error) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_gets_a_core() {
        let text = "processor\t: 0\nmode\t: skas\n\nprocessor\t: 1\nmode\t: skas\n\n";
        let expected = "processor\t: 0\ncore id\t\t: 0\nmode\t: skas\n\n\
            processor\t: 1\ncore id\t\t: 1\nmode\t: skas\n\n";
        assert_eq!(with_cores(text), expected);
    }
}
