//! The command as a process: its streams, its user, its terminal.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

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
    // The standard library's part ends before the exec: glibc's execvp, which it uses, hands
    // whatever the kernel refuses to a shell.
    let image = Image::new(program, environment)?;
    let mut command = Command::new(&program.path);
    command.current_dir(&contract.jobdir);
    let streams = match &contract.terminal {
        Some(terminal) => Streams::terminal(&mut command, terminal, identity)?,
        None => Streams::pipes(&mut command, &contract.stdin)?,
    };
    let (uid, gid, groups) = (identity.uid, identity.gid, identity.groups.clone());
    let (umask, has_terminal) = (contract.umask, contract.terminal.is_some());
    // SAFETY: the closure makes only async-signal-safe calls, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            become_user(uid, gid, &groups, umask, has_terminal)?;
            Err(image.execute())
        });
    }
    let child = command.spawn()?;
    Ok(Running {
        pid: child.id() as libc::pid_t,
        stdin: streams.stdin,
        stdout: Some(streams.stdout),
        stderr: streams.stderr,
        terminal: streams.terminal,
    })
}

/// Between fork and exec.
fn become_user(uid: u32, gid: u32, groups: &[u32], umask: u32, terminal: bool) -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: plain system calls of a single-threaded process; the pointers are to live values.
    unsafe {
        check(libc::setsid())?;
        libc::umask(umask);
        if terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&mut none))?;
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &none,
            std::ptr::null_mut(),
        ))?;
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(gid))?;
        check(libc::setuid(uid))?;
    }
    Ok(())
}

/// What execve(2) takes, made before the fork.
struct Image {
    path: CString,
    /// Kept for the pointers into them.
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
}

// SAFETY: the pointers are into strings that the same value owns and nobody changes.
unsafe impl Send for Image {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for Image {}

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
}

impl Streams {
    fn pipes(command: &mut Command, stdin: &Stdin) -> io::Result<Self> {
        let stdin = match stdin {
            Stdin::Null => {
                command.stdin(Stdio::null());
                None
            }
            Stdin::Link | Stdin::Ring(_) => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                command.stdin(read);
                Some(ours(write)?)
            }
        };
        let (stdout, write) = pipe2(OFlag::O_CLOEXEC)?;
        command.stdout(write);
        let (stderr, write) = pipe2(OFlag::O_CLOEXEC)?;
        command.stderr(write);
        Ok(Streams {
            stdin,
            stdout: ours(stdout)?,
            stderr: Some(ours(stderr)?),
            terminal: None,
        })
    }

    fn terminal(
        command: &mut Command,
        terminal: &Terminal,
        identity: &Identity,
    ) -> io::Result<Self> {
        let size = winsize(terminal.rows, terminal.columns);
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        // The slave belongs to the user, as after a login.
        nix::unistd::fchown(&slave, Some(identity.uid.into()), None)?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        fcntl(&master, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        Ok(Streams {
            stdin: Some(ours(master.try_clone()?)?),
            stdout: ours(master.try_clone()?)?,
            stderr: None,
            terminal: Some(master),
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
