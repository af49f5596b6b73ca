//! The command as a process: its streams, its user, its terminal.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apppot_contract::{Contract, Outcome, Stdin, Terminal};
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::pty::{openpty, OpenptyResult, Winsize};
use nix::unistd::pipe2;

use crate::accounts::Identity;
use crate::workload::Program;

/// The agent's ends of the command's streams, none of which block.
pub(crate) struct Running {
    /// The process, which leads a session of its own.
    pub(crate) pid: libc::pid_t,
    /// Where standard input goes, unless it comes from elsewhere.
    pub(crate) stdin: Option<File>,
    /// Where standard output comes from; with a terminal, everything.
    pub(crate) stdout: Option<File>,
    /// Where standard error comes from, without a terminal.
    pub(crate) stderr: Option<File>,
    /// The terminal's master side.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Bytes that the kernel keeps in a pipe between the agent and the command.
const PIPE_SIZE: libc::c_int = 256 << 10;

/// Starts `program`.
///
/// # Errors
/// As execve(2).
pub(crate) fn start(
    program: &Program,
    environment: &[(OsString, OsString)],
    identity: &Identity,
    contract: &Contract,
) -> io::Result<Running> {
    match spawn(program, environment, identity, contract) {
        // A script without an interpreter's line runs in a shell, as execvp(3) has it.
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) && is_text(&program.path) => {
            let mut argv = vec![OsString::from("sh"), program.path.clone().into()];
            argv.extend_from_slice(&program.argv[1..]);
            let shell = Program {
                path: "/bin/sh".into(),
                argv,
                directory: program.directory.clone(),
                ..*program
            };
            spawn(&shell, environment, identity, contract)
        }
        result => result,
    }
}

fn is_text(path: &Path) -> bool {
    let mut start = [0; 128];
    let len = File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut start));
    len.is_ok_and(|len| !start[..len].contains(&0))
}

fn spawn(
    program: &Program,
    environment: &[(OsString, OsString)],
    identity: &Identity,
    contract: &Contract,
) -> io::Result<Running> {
    let image = Image::new(program, environment)?;
    let streams = match &contract.terminal {
        Some(terminal) => Streams::terminal(terminal, identity)?,
        None => Streams::pipes(&contract.stdin, identity)?,
    };
    let mut birth = Birth {
        image: &image,
        identity,
        directory: CString::new(program.directory.as_os_str().as_bytes())?,
        streams: streams.theirs.each_ref().map(AsRawFd::as_raw_fd),
        umask: contract.umask,
        terminal: contract.terminal.is_some(),
        refused: None,
    };
    Ok(Running {
        pid: birth.give()?,
        stdin: streams.stdin,
        stdout: Some(streams.stdout),
        stderr: streams.stderr,
        terminal: streams.terminal,
    })
}

/// A process between its start and its program. It runs in the agent's memory, as after vfork(2):
/// copying that costs a millisecond. (The standard library forks as soon as there is something to be
/// done before the exec, and leaves that to glibc's execvp, which hands whatever the kernel refuses to
/// a shell.)
struct Birth<'a> {
    image: &'a Image,
    identity: &'a Identity,
    /// Its working directory.
    directory: CString,
    /// Its standard streams, none of which has such a number here.
    streams: [RawFd; 3],
    umask: libc::mode_t,
    /// Whether the streams are its terminal.
    terminal: bool,
    /// Why there is no program.
    refused: Option<io::Error>,
}

/// Room for the few system calls of [`Birth::live`].
const STACK: usize = 16 << 10;

impl Birth<'_> {
    /// Returns when the process has its program, with its number.
    fn give(&mut self) -> io::Result<libc::pid_t> {
        let mut stack = [MaybeUninit::<u128>::uninit(); STACK / size_of::<u128>()];
        // SAFETY: the stack's end is one past the array, and aligned as the ABI wants it. The agent has
        // one thread, which the kernel stops until the child has executed its program or ended
        // (CLONE_VFORK): so neither the stack nor `self` is used by two at once.
        let pid = unsafe {
            libc::clone(
                Self::live,
                stack.as_mut_ptr_range().end.cast(),
                libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                std::ptr::from_mut(self).cast(),
            )
        };
        if pid == -1 {
            return Err(io::Error::last_os_error());
        }
        let Some(error) = self.refused.take() else {
            return Ok(pid);
        };
        // SAFETY: waitpid may be told that the status is not wanted.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        Err(error)
    }

    /// The child; what it returns is its exit status.
    extern "C" fn live(birth: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `give` passes itself, and waits.
        let birth = unsafe { &mut *birth.cast::<Birth>() };
        let error = match birth.prepare() {
            Ok(()) => birth.image.execute(),
            Err(error) => error,
        };
        birth.refused = Some(error);
        127
    }

    /// System calls only: memory is the agent's.
    fn prepare(&self) -> io::Result<()> {
        let check = |result: libc::c_int| match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        let Identity { groups, .. } = self.identity;
        // SAFETY: plain system calls of a single-threaded process; the pointers are to live values.
        unsafe {
            for (number, &stream) in (0..).zip(&self.streams) {
                check(libc::dup2(stream, number))?;
            }
            check(libc::chdir(self.directory.as_ptr()))?;
            check(libc::setsid())?;
            libc::umask(self.umask);
            if self.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            // The agent ignores it.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            check(libc::sigemptyset(&mut none))?;
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &none,
                std::ptr::null_mut(),
            ))?;
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setgid(self.identity.gid))?;
            check(libc::setuid(self.identity.uid))?;
        }
        Ok(())
    }
}

/// What execve(2) takes, made before the clone.
struct Image {
    path: CString,
    /// Kept for the pointers into them.
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
}

impl Image {
    fn new(program: &Program, environment: &[(OsString, OsString)]) -> io::Result<Self> {
        let argv = program.argv.iter().map(|arg| CString::new(arg.as_bytes()));
        let env = environment
            .iter()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
        let strings = argv.chain(env).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| {
            let pointers = strings.iter().map(|string| string.as_ptr());
            pointers.chain([std::ptr::null()]).collect()
        };
        let (argv, env) = strings.split_at(program.argv.len());
        Ok(Image {
            path: CString::new(program.path.as_os_str().as_bytes())?,
            argv: pointers(argv),
            env: pointers(env),
            _strings: strings,
        })
    }

    /// Returns only when the kernel refuses.
    fn execute(&self) -> io::Error {
        // SAFETY: NUL-terminated strings in NULL-terminated arrays, all alive.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()) };
        io::Error::last_os_error()
    }
}

struct Streams {
    stdin: Option<File>,
    stdout: File,
    stderr: Option<File>,
    terminal: Option<OwnedFd>,
    /// The command's own ends: standard input, output, error.
    theirs: [OwnedFd; 3],
}

impl Streams {
    fn pipes(stdin: &Stdin, identity: &Identity) -> io::Result<Self> {
        let (uid, gid) = (identity.uid.into(), identity.gid.into());
        // The pipes belong to the user, who can then open them by name: /dev/stdin, /dev/stderr.
        let pipe = || {
            let ends = pipe2(OFlag::O_CLOEXEC)?;
            // Both ends are one file.
            nix::unistd::fchown(&ends.0, Some(uid), Some(gid))?;
            io::Result::Ok(ends)
        };
        let (input, stdin) = match stdin {
            Stdin::Null => (File::open("/dev/null")?.into(), None),
            Stdin::Link | Stdin::Ring(_) => {
                let (read, write) = pipe()?;
                (read, Some(ours(write)?))
            }
        };
        let (stdout, output) = pipe()?;
        let (stderr, error) = pipe()?;
        Ok(Streams {
            stdin,
            stdout: ours(stdout)?,
            stderr: Some(ours(stderr)?),
            terminal: None,
            theirs: [input, output, error],
        })
    }

    fn terminal(terminal: &Terminal, identity: &Identity) -> io::Result<Self> {
        let size = winsize(terminal.rows, terminal.columns);
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        // The slave belongs to the user, as after a login.
        nix::unistd::fchown(&slave, Some(identity.uid.into()), None)?;
        for fd in [&master, &slave] {
            fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        Ok(Streams {
            stdin: Some(ours(master.try_clone()?)?),
            stdout: ours(master.try_clone()?)?,
            stderr: None,
            terminal: Some(master),
            theirs: [slave.try_clone()?, slave.try_clone()?, slave],
        })
    }
}

/// Prepares the agent's end of a stream.
fn ours(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // Only pipes have a size, and a smaller one also works.
    let _ = fcntl(&fd, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    Ok(fd.into())
}

/// The most that is on its way in a pipe or terminal.
pub(crate) fn capacity(pipe: &File) -> usize {
    let size = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).ok();
    size.and_then(|size| usize::try_from(size).ok())
        .unwrap_or(PIPE_SIZE as usize)
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Tells the terminal its new size; the kernel sends SIGWINCH.
pub(crate) fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = winsize(rows, columns);
    // SAFETY: TIOCSWINSZ reads a winsize. A failure leaves the old size.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
}

/// What there was to wait for.
pub(crate) enum Waited {
    /// A process that has ended, and how.
    Ended(libc::pid_t, Outcome),
    /// Processes are running, none has ended.
    Running,
    /// There are no processes.
    Nobody,
}

/// Waits for any process, without waiting. (nix's waitpid does not know real-time signals.)
pub(crate) fn wait_any() -> Waited {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes the status, which lives here.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        return match pid {
            0 => Waited::Running,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => continue,
            -1 => Waited::Nobody,
            // Exit statuses are eight bits, signals below 65.
            _ if libc::WIFSIGNALED(status) => Waited::Ended(
                pid,
                Outcome::Signalled {
                    signal: libc::WTERMSIG(status) as u8,
                },
            ),
            _ => Waited::Ended(
                pid,
                Outcome::Exited {
                    status: libc::WEXITSTATUS(status) as u8,
                },
            ),
        };
    }
}
