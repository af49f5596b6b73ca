//! A seccomp filter that sends calls which change files' attributes to [`super::attributes`]
//! (`Documentation/userspace-api/seccomp_filter.rst`).

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use libc::{c_long, c_uint, sock_filter};

/// Calls that are carried out by the supervisor: those by which UML's hostfs changes attributes
/// (`set_attr` in fs/hostfs/hostfs_user.c).
const SUPERVISED: [c_long; 7] = [
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_utimes,
    libc::SYS_utimensat,
];

/// What no hypervisor that inherits its descriptors needs: other ways to change attributes, ways out of the
/// process group by which a machine is ended, and ways to other processes of the user that Landlock
/// does not govern (sockets with a name, keys, System V objects).
const REFUSED: [c_long; 23] = [
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utime,
    libc::SYS_futimesat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_io_uring_setup,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_socket,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
];

/// Where Landlock does not govern truncation, this does: `openat2` hides its flags behind a pointer.
const REFUSED_FOR_TRUNCATION: [c_long; 1] = [libc::SYS_openat2];

/// `chattr` and its like: FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION (linux/fs.h).
const REFUSED_IOCTLS: [u32; 3] = [0x4008_6602, 0x401c_5820, 0x4008_7602];

/// The newest call that this list was made with (`mseal`); what came later may change attributes, as
/// `setxattrat` and `file_setattr` do. Numbers of the x32 calls are beyond it too.
const NEWEST: c_long = 462;

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;

/// The filter, ready to be entered by a process between fork and exec.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Vec<sock_filter>,
    ours: UnixStream,
    theirs: UnixStream,
}

impl Filter {
    /// Makes the filter. With `truncation`, truncating is supervised as well.
    ///
    /// # Errors
    /// As socketpair(2).
    pub(crate) fn new(truncation: bool) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let program = program(truncation);
        Ok(Filter {
            program,
            ours,
            theirs,
        })
    }

    /// Enters the filter for good and sends its listener, or the error, to the launcher. To be called
    /// between fork and exec: makes only async-signal-safe calls. The caller has given up new privileges.
    pub(crate) fn enter(&self) {
        let program = libc::sock_fprog {
            len: self.program.len() as libc::c_ushort,
            filter: self.program.as_ptr().cast_mut(),
        };
        let always = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        let install = |flags: libc::c_ulong| {
            // SAFETY: the program and what it points to live during the call.
            unsafe {
                libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    flags,
                    &program,
                ) as RawFd
            }
        };
        // Signals shall not interrupt a call that is being carried out (Linux 5.19).
        let mut listener = install(always | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
        if listener == -1 && errno() == libc::EINVAL {
            listener = install(always);
        }
        let error = if listener == -1 { errno() } else { 0 };
        send(self.theirs.as_raw_fd(), error, listener);
        // SAFETY: the descriptor is this process's own; the hypervisor must not answer itself.
        unsafe { libc::close(listener) };
    }

    /// The listener of the process that has entered the filter.
    ///
    /// # Errors
    /// The host's kernel has refused the filter.
    pub(crate) fn listener(&self) -> io::Result<OwnedFd> {
        receive(&self.ours)
    }
}

fn errno() -> i32 {
    // SAFETY: the location of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Room for one descriptor in a control message, aligned as its header must be.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// A message of one number and perhaps one descriptor. `with` gets it; all it points to lives that long.
fn message<T>(
    number: &mut i32,
    control: &mut Control,
    with: impl FnOnce(&mut libc::msghdr) -> T,
) -> T {
    let mut part = libc::iovec {
        iov_base: std::ptr::from_mut(number).cast(),
        iov_len: size_of::<i32>(),
    };
    // SAFETY: an all-zero msghdr is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    with(&mut message)
}

/// Async-signal-safe.
fn send(socket: RawFd, mut error: i32, descriptor: RawFd) {
    let mut control = Control([0; 24]);
    message(&mut error, &mut control, |message| {
        if descriptor == -1 {
            message.msg_controllen = 0;
        } else {
            // SAFETY: the control buffer has room for one header with one descriptor.
            unsafe {
                let header = libc::CMSG_FIRSTHDR(message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as c_uint) as usize;
                libc::CMSG_DATA(header)
                    .cast::<RawFd>()
                    .write_unaligned(descriptor);
            }
        }
        // SAFETY: the message is complete. If it cannot be sent the launcher finds none.
        unsafe { libc::sendmsg(socket, message, libc::MSG_NOSIGNAL) };
    });
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let (mut error, mut control) = (0, Control([0; 24]));
    message(&mut error, &mut control, |message| {
        // SAFETY: the message has room for what it says.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) };
        if got == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled the control buffer in; the descriptor is new and nobody else's.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return Ok(None);
            }
            let descriptor = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            Ok(Some(OwnedFd::from_raw_fd(descriptor)))
        }
    })?
    .ok_or_else(|| io::Error::from_raw_os_error(error))
}

// ---- The program ------------------------------------------------------------------------------

fn program(truncation: bool) -> Vec<sock_filter> {
    let mut program = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        unless_equal(X86_64, 1),
        skip(1),
        refuse(libc::ENOSYS),
        load(offset_of!(libc::seccomp_data, nr)),
        unless_above(NEWEST as u32, 1),
        refuse(libc::ENOSYS),
    ];
    let mut when = |call: c_long, answer: sock_filter| {
        program.extend([unless_equal(call as u32, 1), answer]);
    };
    for call in SUPERVISED {
        when(call, answer(libc::SECCOMP_RET_USER_NOTIF));
    }
    for call in REFUSED {
        when(call, refuse(libc::EPERM));
    }
    if truncation {
        when(libc::SYS_truncate, answer(libc::SECCOMP_RET_USER_NOTIF));
        // Where it is missing, callers take openat.
        for call in REFUSED_FOR_TRUNCATION {
            when(call, refuse(libc::ENOSYS));
        }
    }
    program.extend(opens(libc::SYS_open, 1, truncation));
    program.extend(opens(libc::SYS_openat, 2, truncation));
    program.extend(attribute_ioctls());
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

/// Access mode 3 is neither reading nor writing, so Landlock asks for no right; and a file that is opened for
/// reading can be truncated by the same call, unseen by older ones.
fn opens(call: c_long, flags: usize, truncation: bool) -> [sock_filter; 8] {
    const MODE: u32 = libc::O_ACCMODE as u32;
    let truncate = if truncation { libc::O_TRUNC as u32 } else { 0 };
    let bits = |bits| statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, bits);
    [
        unless_equal(call as u32, 7),
        load(argument(flags)),
        bits(MODE | truncate),
        // Never equal where truncation is Landlock's to govern.
        jump(libc::BPF_JEQ, libc::O_TRUNC as u32, 2, 0),
        bits(MODE),
        unless_equal(MODE, 1),
        refuse(libc::EPERM),
        load(offset_of!(libc::seccomp_data, nr)),
    ]
}

fn attribute_ioctls() -> Vec<sock_filter> {
    let refusals = REFUSED_IOCTLS.map(|ioctl| [unless_equal(ioctl, 1), refuse(libc::EPERM)]);
    let refusals = refusals.concat();
    let mut program = vec![
        unless_equal(libc::SYS_ioctl as u32, refusals.len() as u8 + 1),
        load(argument(1)),
    ];
    program.extend(refusals);
    program
}

/// Where the lower half of an argument is (little endian).
fn argument(index: usize) -> usize {
    offset_of!(libc::seccomp_data, args) + index * size_of::<u64>()
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn load(offset: usize) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32)
}

fn skip(count: u32) -> sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JA, count)
}

/// Skips the next `count` statements unless what was loaded equals `value`.
fn unless_equal(value: u32, count: u8) -> sock_filter {
    jump(libc::BPF_JEQ, value, 0, count)
}

/// Skips the next `count` statements unless what was loaded is above `value`.
fn unless_above(value: u32, count: u8) -> sock_filter {
    jump(libc::BPF_JGT, value, 0, count)
}

/// Skips `jt` statements when what was loaded compares so, else `jf`.
fn jump(comparison: u32, value: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        jt,
        jf,
        ..statement(libc::BPF_JMP | comparison | libc::BPF_K, value)
    }
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn refuse(errno: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | errno as u32)
}
