//! Processes that are timed: from the moment before fork to the moment after wait.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::sys::resource::{getrusage, UsageWho};
use nix::sys::time::TimeValLike;
use nix::unistd::{Gid, Uid};

/// The account of the ordinary user that everything runs as when the benchmark itself is root's.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// The account of that name.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let user = nix::unistd::User::from_name(name)?;
        let user = user.with_context(|| format!("there is no user '{name}'"))?;
        Ok(Account {
            uid: user.uid,
            gid: user.gid,
        })
    }
}

/// A command to be run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Program and arguments.
    pub(crate) argv: Vec<OsString>,
    /// Its whole environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub(crate) dir: PathBuf,
    /// Whom it runs as; `None`: as the benchmark itself.
    pub(crate) account: Option<Account>,
    /// The one CPU that it may use.
    pub(crate) cpu: Option<usize>,
    /// The mount namespace that it enters.
    pub(crate) namespace: Option<Arc<OwnedFd>>,
    /// A pipe instead of /dev/null as standard input.
    pub(crate) feed: bool,
    /// A pipe instead of a file as standard output.
    pub(crate) listen: bool,
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// From before fork to after wait.
    pub(crate) wall: Duration,
    /// CPU time of the process and of those that it has waited for.
    pub(crate) cpu: Duration,
    /// How.
    pub(crate) status: ExitStatus,
    /// What it wrote, unless it was listened to.
    pub(crate) stdout: Vec<u8>,
    /// What it complained about.
    pub(crate) stderr: Vec<u8>,
}

/// A command that is running; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process, with the pipes that were asked for.
    pub(crate) child: Child,
    /// When it was started.
    pub(crate) start: Instant,
    stdout: Option<File>,
    stderr: File,
}

impl Run {
    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.argv.extend(args);
        self
    }

    /// Adds a variable.
    pub(crate) fn var(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// In this directory.
    pub(crate) fn within(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.dir);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// As fork(2) and execve(2).
    pub(crate) fn start(&self) -> Result<Running> {
        let (Some(program), stderr) = (self.argv.first(), tempfile::tempfile()?) else {
            bail!("there is no command");
        };
        let stdout = (!self.listen).then(tempfile::tempfile).transpose()?;
        let mut command = Command::new(program);
        command
            .args(&self.argv[1..])
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(if self.feed {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(match &stdout {
                Some(file) => file.try_clone()?.into(),
                None => Stdio::piped(),
            })
            .stderr(stderr.try_clone()?);
        self.become_the_user(&mut command)?;
        let start = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start '{}'", program.to_string_lossy()))?;
        Ok(Running {
            child,
            start,
            stdout,
            stderr,
        })
    }

    /// Between fork and exec: namespace, directory, CPU, account; in this order, so the standard
    /// library, which does some of it too early, does none of it.
    fn become_the_user(&self, command: &mut Command) -> Result<()> {
        let namespace = self.namespace.clone();
        let dir = CString::new(self.dir.as_os_str().as_bytes())?;
        let cpus = self.cpu.map(cpu_set);
        let account = self.account.clone();
        let check = |result: libc::c_int| match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        };
        let prepare = move || {
            // SAFETY: system calls with plain numbers or pointers to values that are alive.
            unsafe {
                if let Some(namespace) = &namespace {
                    check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS))?;
                }
                check(libc::chdir(dir.as_ptr()))?;
                if let Some(cpus) = &cpus {
                    check(libc::sched_setaffinity(0, size_of_val(cpus), cpus))?;
                }
                if let Some(account) = &account {
                    check(libc::setgroups(0, std::ptr::null()))?;
                    check(libc::setgid(account.gid.as_raw()))?;
                    check(libc::setuid(account.uid.as_raw()))?;
                }
            }
            Ok(())
        };
        // SAFETY: `prepare` makes system calls on values made before; it allocates nothing.
        unsafe { command.pre_exec(prepare) };
        Ok(())
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn finish(&self) -> Result<Ended> {
        self.start()?.finish()
    }

    /// Runs it to its end, which must be a success.
    ///
    /// # Errors
    /// It cannot be started, or it failed.
    pub(crate) fn succeed(&self) -> Result<Ended> {
        self.finish()?.success()
    }
}

fn cpu_set(cpu: usize) -> libc::cpu_set_t {
    // SAFETY: an all-zero cpu_set_t is the empty set, and CPU_SET checks its bounds.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    }
}

impl Running {
    /// Its process number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As wait(2).
    pub(crate) fn finish(mut self) -> Result<Ended> {
        let before = cpu_of_the_dead()?;
        let status = self.child.wait()?;
        let wall = self.start.elapsed();
        Ok(Ended {
            wall,
            cpu: cpu_of_the_dead()?.saturating_sub(before),
            status,
            stdout: self.output(),
            stderr: content(&mut self.stderr),
        })
    }

    /// What it has written so far, unless it is listened to.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        self.stdout.as_mut().map(content).unwrap_or_default()
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(nix::sys::signal::kill(
            pid,
            nix::sys::signal::Signal::SIGTERM,
        )?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing when it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all children that have ended and been waited for, so far.
fn cpu_of_the_dead() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(
        time.num_microseconds(),
    )?))
}

/// Everything in a file that others write. The writers share the offset, so it is left where it was.
fn content(file: &mut File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

impl Ended {
    /// Itself, if it ended well.
    ///
    /// # Errors
    /// The exit status, and the last line of what it complained about.
    pub(crate) fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let complaint = String::from_utf8_lossy(&self.stderr);
        let line = complaint.lines().rfind(|line| !line.trim().is_empty());
        bail!("{}: {}", self.status, line.unwrap_or("no message").trim());
    }

    /// What it wrote, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Wall time in milliseconds.
    pub(crate) fn millis(&self) -> f64 {
        self.wall.as_secs_f64() * 1e3
    }
}
