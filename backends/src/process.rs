//! Hypervisor processes that cannot outlive the launcher.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
    SockFlag, SockType,
};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::containment::Confinement;

/// Numbers that the child's inherited descriptors get. High enough that nothing which the standard
/// library opens between fork and exec can have them.
pub const FIRST_DESCRIPTOR: RawFd = 100;

/// Where copies of them are until the child has its own.
pub(crate) const FIRST_COPY: RawFd = FIRST_DESCRIPTOR + 100;

/// The limit on open files (`RLIMIT_NOFILE`) under which a process that inherits `files` descriptors
/// can be started.
#[must_use]
pub(crate) fn highest_descriptor(files: usize) -> u64 {
    FIRST_COPY as u64 + files as u64 + 1
}

/// A process to be started.
#[derive(Debug)]
pub struct Spawn {
    /// The program's file.
    pub program: OsString,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Descriptors that it gets: the number there (at least [`FIRST_DESCRIPTOR`]), and which.
    pub descriptors: Vec<(RawFd, OwnedFd)>,
    /// Its standard output and standard error.
    pub console: OwnedFd,
    /// The host CPU that it and its children are bound to.
    pub cpu: Option<usize>,
    /// Whether its memory is where its file says, not at random places.
    pub fixed_addresses: bool,
    /// What it confines itself to.
    pub confinement: Option<Confinement>,
    /// Who ends it when this process is killed.
    pub at_end: AtEnd,
}

/// A process that dies with the thread that started it, and when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    at_end: AtEnd,
    ended: Option<ExitStatus>,
    confinement: Option<Arc<Confinement>>,
}

impl Spawn {
    /// Starts the process, in a session of its own so that a terminal's signals do not reach it.
    ///
    /// # Errors
    /// As fork(2) and execve(2).
    pub fn start(self) -> io::Result<Process> {
        raise_descriptor_limit();
        let moved = self
            .descriptors
            .iter()
            .map(|(number, fd)| Ok((above(fd, FIRST_COPY)?, *number)))
            .collect::<io::Result<Vec<(OwnedFd, RawFd)>>>()?;
        let plan: Vec<(RawFd, RawFd)> =
            moved.iter().map(|(fd, to)| (fd.as_raw_fd(), *to)).collect();
        let confinement = self.confinement.map(Arc::new);
        let entered = confinement.clone();
        let cpus = self.cpu.map(cpu_set);
        let fixed_addresses = self.fixed_addresses;
        let launcher = std::process::id();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(self.console.try_clone()?)
            .stderr(self.console);
        // SAFETY: the closure makes only async-signal-safe calls on values prepared above.
        unsafe {
            command.pre_exec(move || {
                if fixed_addresses {
                    libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                }
                prepare(launcher, &plan, entered.as_deref(), cpus.as_ref())
            });
        }
        adopt_orphans();
        let child = command.spawn()?;
        let mut process = Process {
            pidfd: pidfd_open(child.id())?,
            child,
            at_end: self.at_end,
            ended: None,
            confinement,
        };
        let watched = process
            .at_end
            .watch(Some(process.child.id() as libc::pid_t));
        watched.or_else(|error| process.kill().and(Err(error)))?;
        Ok(process)
    }
}

/// The descriptors' numbers are beyond what some callers are limited to.
fn raise_descriptor_limit() {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    const ENOUGH: u64 = 512;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < ENOUGH {
            // What cannot be raised is reported when a descriptor cannot be had.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, ENOUGH.min(hard), hard);
        }
    }
}

/// What the processes of a machine leave running when they end becomes this process's child, so that
/// it can be reaped here.
fn adopt_orphans() {
    // SAFETY: prctl with plain numbers. Without it orphans go to the system's init: no harm done.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Between fork and exec: async-signal-safe calls only, no allocation.
fn prepare(
    launcher: u32,
    plan: &[(RawFd, RawFd)],
    confinement: Option<&Confinement>,
    cpus: Option<&libc::cpu_set_t>,
) -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: plain system calls; the pointers are to live values of the right size.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The launcher may have died before the line above.
        if libc::getppid() as u32 != launcher {
            libc::_exit(127);
        }
        check(libc::setsid())?;
        // The guest's own mask decides on the modes of files that it makes on the host.
        libc::umask(0);
        check(spare_signals())?;
        // A guest's panic aborts the hypervisor: no core file in the user's directory.
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        check(libc::setrlimit(libc::RLIMIT_CORE, &no_core))?;
        if let Some(cpus) = cpus {
            // A CPU that has gone meanwhile only costs speed.
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus);
        }
        for &(from, to) in plan {
            check(libc::dup2(from, to))?;
        }
        if let Some(confinement) = confinement {
            confinement.enter()?;
        }
    }
    Ok(())
}

/// Whoever signals all processes of a job (a batch system, systemd) means the command: the launcher
/// passes it on, and ends the hypervisor when it is time. Async-signal-safe.
fn spare_signals() -> libc::c_int {
    // SAFETY: the set is live and of the right size; the signals exist.
    unsafe {
        let mut spared: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut spared);
        for signal in [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGXCPU,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ] {
            libc::sigaddset(&mut spared, signal);
        }
        // UML's processes that execute the guest's programs unblock these two, and ignore what is ignored now.
        for signal in [libc::SIGUSR1, libc::SIGUSR2] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &spared, std::ptr::null_mut())
    }
}

fn cpu_set(cpu: usize) -> libc::cpu_set_t {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET checks its bounds.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set
}

/// A copy of `fd` with a number of at least `least`, closed on exec.
fn above(fd: &OwnedFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on an open descriptor; the result is a new one that nobody else owns.
    unsafe {
        match libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) {
            -1 => Err(io::Error::last_os_error()),
            copy => Ok(OwnedFd::from_raw_fd(copy)),
        }
    }
}

/// A descriptor of the process with this number.
///
/// # Errors
/// There is none.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes no pointers; the result is a new descriptor (close-on-exec by itself).
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}

impl Process {
    /// A descriptor that becomes readable when the process has ended.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What it confines itself to.
    #[must_use]
    pub fn confinement(&self) -> Option<&Confinement> {
        self.confinement.as_deref()
    }

    /// Waits until the process has ended or `until` has come.
    ///
    /// # Errors
    /// As waitpid(2).
    pub fn wait(&mut self, until: Option<Instant>) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() && wait_readable(self.pidfd.as_fd(), until)? {
            self.end_group()?;
        }
        Ok(self.ended)
    }

    /// Kills and reaps the process. Harmless when it has ended.
    ///
    /// # Errors
    /// As waitpid(2).
    pub fn kill(&mut self) -> io::Result<()> {
        match self.ended {
            Some(_) => Ok(()),
            None => self.end_group(),
        }
    }

    /// Kills and reaps the process and its helpers. Linux 6.1's UML leaves helpers behind when
    /// they are killed or panic; all are in the process's group, and as long as the process is
    /// not reaped the group's number is nobody else's.
    fn end_group(&mut self) -> io::Result<()> {
        let group = self.child.id() as libc::pid_t;
        kill_group(group);
        self.ended = Some(self.child.wait()?);
        // If the watch is gone there is nobody to tell.
        let _ = self.at_end.watch(None);
        // Orphans come to this process (see `start`).
        while waitpid(Pid::from_raw(-group), None).is_ok() {}
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the kernel kills it with this thread.
        let _ = self.kill();
    }
}

/// Waits until `fd` is readable (true) or `until` has come (false).
pub(crate) fn wait_readable(fd: BorrowedFd, until: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                // Rounded up: a timeout of 0 ms before the time would be a busy loop.
                let millis = left.as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if until.is_some_and(|until| Instant::now() >= until) => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The signal or exit status in words, for messages.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Does what must be done when this process ends, however it ends: in a child that waits for it.
/// `action` is run then, and what [`AtEnd::watch`] or [`AtEnd::watch_process`] has named last is killed.
/// Dropping the guard ends the child, the action done.
///
/// Must be called while the process has one thread: the child goes on from a fork.
///
/// # Errors
/// As socketpair(2) and fork(2).
pub fn at_end(action: impl FnOnce()) -> io::Result<AtEnd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (read, write) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    // SAFETY: one thread (see above), so the child may go on as if nothing had happened.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(AtEnd {
            write: Some(write),
            child,
        }),
        nix::unistd::ForkResult::Child => {
            drop(write);
            match wait_for_end(&read) {
                Watched::Nothing => {}
                Watched::Group(group) => kill_group(group),
                Watched::Process(process) => kill_process(process.as_fd()),
            }
            action();
            // SAFETY: no destructor of the launcher must run twice.
            unsafe { libc::_exit(0) }
        }
    }
}

/// What is killed at the end.
enum Watched {
    Nothing,
    Group(libc::pid_t),
    Process(OwnedFd),
}

/// In the child: out of the terminal's reach, holding nothing of the launcher's but the socket. What is to be
/// killed.
fn wait_for_end(socket: &OwnedFd) -> Watched {
    let keep = socket.as_raw_fd();
    // SAFETY: plain system calls of a single-threaded process.
    unsafe {
        libc::setsid();
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        // Standard input stays: a terminal that must be restored is reached through it. The others
        // may be pipes whose readers wait for their end.
        if keep > 1 {
            libc::close_range(1, keep as u32 - 1, 0);
        }
        libc::close_range(keep as u32 + 1, u32::MAX, 0);
    }
    let mut last = Watched::Nothing;
    while let Some(next) = receive(socket) {
        last = next;
    }
    last
}

/// The next message to the watch; `None` when there will be no more.
fn receive(socket: &OwnedFd) -> Option<Watched> {
    let mut group = [0; size_of::<libc::pid_t>()];
    let mut parts = [io::IoSliceMut::new(&mut group)];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags).ok()?;
    if message.bytes == 0 {
        return None;
    }
    let passed = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(passed) => passed.first().copied(),
        _ => None,
    });
    if let Some(process) = passed {
        // SAFETY: just received, so it is nobody else's.
        return Some(Watched::Process(unsafe { OwnedFd::from_raw_fd(process) }));
    }
    Some(match libc::pid_t::from_ne_bytes(group) {
        group if group > 1 => Watched::Group(group),
        _ => Watched::Nothing,
    })
}

/// Kills the process of a pidfd; it may have ended.
pub(crate) fn kill_process(process: BorrowedFd) {
    // SAFETY: a pidfd, and no pointers that are followed.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
}

/// Kills every process of a group; there may be none left.
pub(crate) fn kill_group(group: libc::pid_t) {
    // SAFETY: kill takes no pointers; the group is neither this process's own nor "all".
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

/// See [`at_end`].
#[derive(Debug)]
pub struct AtEnd {
    write: Option<OwnedFd>,
    child: Pid,
}

impl AtEnd {
    /// From now on this process group is killed at the end; `None`: none is.
    ///
    /// # Errors
    /// The child is gone.
    pub fn watch(&self, group: Option<libc::pid_t>) -> io::Result<()> {
        self.send(group.unwrap_or(0), &[])
    }

    /// From now on the process of this pidfd is killed at the end.
    ///
    /// # Errors
    /// The child is gone.
    #[cfg(feature = "libvirt")]
    pub(crate) fn watch_process(&self, process: BorrowedFd) -> io::Result<()> {
        self.send(0, &[ControlMessage::ScmRights(&[process.as_raw_fd()])])
    }

    fn send(&self, group: libc::pid_t, control: &[ControlMessage]) -> io::Result<()> {
        let Some(write) = &self.write else {
            return Ok(());
        };
        let bytes = group.to_ne_bytes();
        let parts = [io::IoSlice::new(&bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(write.as_raw_fd(), &parts, control, flags, None)?;
        Ok(())
    }
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.write = None;
        let _ = waitpid(self.child, None);
    }
}

/// The path by which a process opens its own descriptor `number` again.
#[must_use]
pub fn descriptor_path(number: RawFd) -> String {
    format!("/proc/self/fd/{number}")
}

/// `argv` for people: the program and its arguments, lossy.
#[must_use]
pub fn shown(program: &OsStr, args: &[OsString]) -> Vec<String> {
    std::iter::once(program)
        .chain(args.iter().map(OsString::as_os_str))
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect()
}
