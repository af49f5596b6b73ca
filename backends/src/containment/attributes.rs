//! Modes, owners and times of files: what Landlock does not govern.
//!
//! A process with access to a path may change its attributes, and through hostfs that process is the
//! guest's root. So the calls that do it stop at a seccomp filter ([`super::filter`]) and are carried
//! out here, by the launcher, on files below the directories that the machine may write into, and on files
//! that it has opened for writing, which Landlock has allowed. The hypervisor's
//! memory is read once and the file is found anew from the directory's own descriptor, so that nothing
//! which changes meanwhile leads elsewhere (seccomp_unotify(2), "Caveats").

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{openat2, readlink, OFlag, OpenHow, ResolveFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::stat::fstat;

use crate::process::descriptor_path;

/// A directory that the machine may write into: the number of its descriptor there, and the directory.
pub(crate) type Writable = (RawFd, OwnedFd);

/// Carries out the calls of one hypervisor.
pub(crate) struct Supervisor {
    listener: OwnedFd,
    process: OwnedFd,
    writable: Vec<Writable>,
}

/// What a call wants changed.
#[derive(Debug, PartialEq)]
enum Change {
    Mode(libc::mode_t),
    Owner(libc::uid_t, libc::gid_t),
    Times([libc::timespec; 2]),
    Size(libc::off_t),
}

/// Longest path that is looked at, with its end (`PATH_MAX`).
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// Why processes cannot be supervised here; `None` when they can.
#[must_use]
pub fn obstacle() -> Option<String> {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: the call reads one number.
    let known = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &action,
        )
    };
    if known == -1 {
        return Some(String::from(
            "the host's kernel has no seccomp user notification (Linux 5.0)",
        ));
    }
    if let Some(error) = introspection().err() {
        return Some(format!("this process may not look into others: {error}"));
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let looked_into = matches!(scope.trim(), "" | "0" | "1") || has_ptrace();
    (!looked_into).then(|| format!("kernel.yama.ptrace_scope is {}", scope.trim()))
}

/// Tries the calls that the supervisor needs, on this process: containers refuse them to some.
fn introspection() -> io::Result<()> {
    let this = nix::unistd::getpid().as_raw();
    // SAFETY: a plain number; the result is a new descriptor (close-on-exec by itself).
    let process = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, this, 0) {
            -1 => return Err(io::Error::last_os_error()),
            process => OwnedFd::from_raw_fd(process as RawFd),
        }
    };
    copy(&process, process.as_raw_fd())?;
    let (there, mut here) = ([1u8], [0u8]);
    read(this, there.as_ptr() as u64, &mut here)
}

/// `CAP_SYS_PTRACE` (linux/capability.h), which Yama asks for from its scope 2 on.
fn has_ptrace() -> bool {
    const SYS_PTRACE: u32 = 19;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << SYS_PTRACE) != 0)
}

/// A descriptor for what `process` has under this number.
fn copy(process: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the result is a new descriptor (close-on-exec by itself).
    unsafe {
        match libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) {
            -1 => Err(io::Error::last_os_error()),
            copy => Ok(OwnedFd::from_raw_fd(copy as RawFd)),
        }
    }
}

/// Reads another process's memory.
fn read(process: libc::pid_t, address: u64, into: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: into.len(),
    };
    // SAFETY: `local` is a buffer of ours of that length; `remote` is the other process's.
    let got = unsafe { libc::process_vm_readv(process, &local, 1, &remote, 1, 0) };
    match got {
        -1 => Err(io::Error::last_os_error()),
        got if got == into.len() as isize => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

impl Supervisor {
    /// Starts to serve, on a thread that ends with the last process behind the filter.
    ///
    /// # Errors
    /// As `pthread_create(3)`.
    pub(crate) fn start(
        listener: OwnedFd,
        process: OwnedFd,
        writable: Vec<Writable>,
    ) -> io::Result<()> {
        let supervisor = Supervisor {
            listener,
            process,
            writable,
        };
        std::thread::Builder::new()
            .name(String::from("attributes"))
            .stack_size(64 << 10)
            .spawn(move || while supervisor.serve_one().is_ok() {})
            .map(drop)
    }

    fn serve_one(&self) -> io::Result<()> {
        let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => return Ok(()),
            result => result?,
        };
        let events = ready[0].revents().unwrap_or(PollFlags::POLLERR);
        if !events.contains(PollFlags::POLLIN) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: an all-zero notification is what the kernel wants to be given.
        let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        if !self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut request) {
            // The caller was killed meanwhile.
            return Ok(());
        }
        let error = match self.carry_out(&request) {
            Ok(()) => 0,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EPERM),
        };
        let mut answer = libc::seccomp_notif_resp {
            id: request.id,
            val: 0,
            error,
            flags: 0,
        };
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut answer);
        Ok(())
    }

    fn ioctl<T>(&self, request: libc::Ioctl, value: &mut T) -> bool {
        // SAFETY: each request is called with the structure that it takes.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), request, value) != -1 }
    }

    fn carry_out(&self, request: &libc::seccomp_notif) -> io::Result<()> {
        let args = &request.data.args;
        let call = libc::c_long::from(request.data.nr);
        let change = match call {
            libc::SYS_chmod | libc::SYS_fchmod => Change::Mode(args[1] as libc::mode_t),
            libc::SYS_chown | libc::SYS_lchown | libc::SYS_fchown => {
                Change::Owner(args[1] as libc::uid_t, args[2] as libc::gid_t)
            }
            libc::SYS_truncate => Change::Size(args[1] as libc::off_t),
            libc::SYS_utimes => Change::Times(self.times(request, args[1], 1000)?),
            libc::SYS_utimensat => Change::Times(self.times(request, args[2], 1)?),
            _ => return Err(io::Error::from_raw_os_error(libc::EPERM)),
        };
        let file = match call {
            libc::SYS_fchmod | libc::SYS_fchown => self.opened(args[0] as RawFd)?,
            libc::SYS_utimensat if args[1] == 0 => self.opened(args[0] as RawFd)?,
            libc::SYS_utimensat => self.named(request, args[1])?,
            _ => self.named(request, args[0])?,
        };
        change.apply(&file)
    }

    /// The file that the hypervisor has under this number, if its attributes are the machine's to change.
    fn opened(&self, number: RawFd) -> io::Result<OwnedFd> {
        let file = copy(&self.process, number)?;
        let stat = fstat(&file)?;
        if !matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL)?;
        if matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR) {
            return Ok(file);
        }
        let path = readlink(descriptor_path(file.as_raw_fd()).as_str())?;
        for (_, directory) in &self.writable {
            let above = readlink(descriptor_path(directory.as_raw_fd()).as_str())?;
            let Some(below) = path.as_bytes().strip_prefix(above.as_bytes()) else {
                continue;
            };
            let found = beneath(directory, below)?;
            let that = fstat(&found)?;
            if (stat.st_dev, stat.st_ino) == (that.st_dev, that.st_ino) {
                return Ok(found);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    /// The file that the path at `address` names: `/proc/self/fd/NUMBER` of a directory, and what is below.
    fn named(&self, request: &libc::seccomp_notif, address: u64) -> io::Result<OwnedFd> {
        let path = self.path(request, address)?;
        let (number, below) = split(&path).ok_or(nix::Error::EPERM)?;
        let directory = self.writable.iter().find(|(given, _)| *given == number);
        let (_, directory) = directory.ok_or(nix::Error::EPERM)?;
        beneath(directory, below)
    }

    fn path(&self, request: &libc::seccomp_notif, address: u64) -> io::Result<Vec<u8>> {
        const PAGE: usize = 4096;
        let mut path = Vec::new();
        // A page at a time: what is behind the path's end may not be there.
        while path.len() < PATH_MAX {
            let at = address.wrapping_add(path.len() as u64);
            let mut piece = [0; PAGE];
            let piece = &mut piece[..PAGE - at as usize % PAGE];
            self.read(request, at, piece)?;
            match piece.iter().position(|&byte| byte == 0) {
                Some(end) => {
                    path.extend_from_slice(&piece[..end]);
                    return Ok(path);
                }
                None => path.extend_from_slice(piece),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// Two pairs of seconds and `unit` nanoseconds; a null pointer means now.
    fn times(
        &self,
        request: &libc::seccomp_notif,
        address: u64,
        unit: i64,
    ) -> io::Result<[libc::timespec; 2]> {
        let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
        if address == 0 {
            return Ok([time(0, libc::UTIME_NOW); 2]);
        }
        let mut bytes = [0; 32];
        self.read(request, address, &mut bytes)?;
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| i64::from_ne_bytes(word.try_into().unwrap_or_default()));
        let mut next = || words.next().unwrap_or_default();
        Ok([(); 2].map(|()| time(next(), next().wrapping_mul(unit))))
    }

    /// Reads memory of the thread that has made the call, and makes sure that it was that thread's.
    fn read(&self, request: &libc::seccomp_notif, address: u64, into: &mut [u8]) -> io::Result<()> {
        read(request.pid as libc::pid_t, address, into)?;
        let mut id = request.id;
        match self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }
}

/// The descriptor's number and what is below it, of `/proc/self/fd/NUMBER/…`.
fn split(path: &[u8]) -> Option<(RawFd, &[u8])> {
    let start = path.iter().position(|&byte| byte != b'/')?;
    let rest = path[start..].strip_prefix(b"proc/self/fd/")?;
    let end = rest
        .iter()
        .position(|&byte| byte == b'/')
        .unwrap_or(rest.len());
    let number = std::str::from_utf8(&rest[..end]).ok()?;
    Some((number.parse().ok()?, &rest[end..]))
}

/// Opens what is `below` the directory, to name it, without following any symbolic link.
fn beneath(directory: &OwnedFd, below: &[u8]) -> io::Result<OwnedFd> {
    let start = below.iter().position(|&byte| byte != b'/');
    let Some(start) = start else {
        return directory.try_clone();
    };
    if start == 0 {
        // A neighbour whose name begins like the directory's.
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(directory, &below[start..], how)?)
}

impl Change {
    /// Changes the file itself, also when it is a symbolic link.
    fn apply(&self, file: &OwnedFd) -> io::Result<()> {
        const SELF: &std::ffi::CStr = c"";
        let descriptor = file.as_raw_fd();
        let path = CString::new(descriptor_path(descriptor))?;
        // SAFETY: the paths and times live during the calls.
        let result = unsafe {
            match self {
                Change::Mode(mode) => libc::chmod(path.as_ptr(), *mode),
                Change::Owner(user, group) => libc::fchownat(
                    descriptor,
                    SELF.as_ptr(),
                    *user,
                    *group,
                    libc::AT_EMPTY_PATH,
                ),
                Change::Times(times) => libc::utimensat(
                    descriptor,
                    SELF.as_ptr(),
                    times.as_ptr(),
                    libc::AT_EMPTY_PATH,
                ),
                Change::Size(size) => libc::truncate(path.as_ptr(), *size),
            }
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
