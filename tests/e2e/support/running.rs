//! A run that goes on, and one that has ended.

use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::cloud::Tenant;
use super::{daemon, eventually, processes, site};

/// What has come out of a pipe so far.
#[derive(Debug, Default)]
struct Captured {
    bytes: Mutex<Vec<u8>>,
    ended: Mutex<bool>,
}

impl Captured {
    fn start(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let captured = Arc::new(Captured::default());
        let shared = Arc::clone(&captured);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(len @ 1..) = pipe.read(&mut buffer) {
                shared
                    .bytes
                    .lock()
                    .unwrap()
                    .extend_from_slice(&buffer[..len]);
            }
            *shared.ended.lock().unwrap() = true;
        });
        captured
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

/// A run that goes on. Killed when it is dropped or takes too long.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Arc<Captured>,
    stderr: Arc<Captured>,
    started: Instant,
    limit: Duration,
    status: Option<ExitStatus>,
    tenant: Option<Tenant>,
}

impl Running {
    pub(crate) fn new(
        mut child: Child,
        bytes: Option<Vec<u8>>,
        limit: Duration,
        tenant: Option<Tenant>,
    ) -> Self {
        // SAFETY: the child has not been waited for; the result is a new descriptor.
        let pidfd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
            assert!(fd >= 0, "pidfd_open");
            OwnedFd::from_raw_fd(fd as i32)
        };
        let mut stdin = child.stdin.take();
        if let Some(bytes) = bytes {
            let mut pipe = stdin.take().unwrap();
            std::thread::spawn(move || {
                // A command need not read all of it.
                let _ = pipe.write_all(&bytes);
            });
        }
        let stdout = child.stdout.take().map(Captured::start);
        let stderr = child.stderr.take().map(Captured::start);
        let none = || {
            let none = Captured::default();
            *none.ended.lock().unwrap() = true;
            Arc::new(none)
        };
        Running {
            child,
            pidfd,
            stdin,
            stdout: stdout.unwrap_or_else(none),
            stderr: stderr.unwrap_or_else(none),
            started: Instant::now(),
            limit,
            status: None,
            tenant,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The machine's first process.
    pub(crate) fn machine(&self, hypervisor: &std::path::Path) -> u32 {
        self.find_machine(hypervisor).expect("no machine runs")
    }

    /// The process of the machine, if there is one.
    pub(crate) fn find_machine(&self, hypervisor: &std::path::Path) -> Option<u32> {
        if let Some(tenant) = &self.tenant {
            return tenant.machine();
        }
        if let Some(daemon) = site().and_then(|site| site.daemon) {
            return daemon::guests(daemon, self.pid()).first().copied();
        }
        let real = std::fs::canonicalize(hypervisor).unwrap();
        let mut below = processes::descendants(self.pid()).into_iter();
        below.find(|pid| processes::executable(*pid).as_deref() == Some(&real))
    }

    /// Sends a signal to the launcher.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: our child, which has not been waited for.
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    /// Waits until standard output holds `text`.
    pub(crate) fn until_it_prints(&self, text: &str) {
        self.until(&self.stdout, text);
    }

    /// Waits until standard error holds `text`.
    pub(crate) fn until_it_says(&self, text: &str) {
        self.until(&self.stderr, text);
    }

    fn until(&self, stream: &Captured, text: &str) {
        let limit = self.limit.saturating_sub(self.started.elapsed());
        let what = || {
            format!(
                "{text:?} in {:?}; stderr: {}",
                self.stdout.text(),
                self.stderr.text()
            )
        };
        let end = Instant::now() + limit;
        loop {
            // Asked before the text is: what comes last is not missed.
            let is_all = *stream.ended.lock().unwrap() && self.has_ended();
            if stream.text().contains(text) {
                return;
            }
            assert!(Instant::now() < end && !is_all, "no {}", what());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Writes to standard input.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Ends standard input.
    pub(crate) fn end_input(&mut self) {
        self.stdin = None;
    }

    fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let millis = PollTimeout::try_from(limit.as_millis()).unwrap();
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, millis).unwrap() > 0
    }

    /// Waits for its end; panics when that takes too long, or when it leaves a process.
    pub(crate) fn finish(mut self) -> Done {
        let left = self.limit.saturating_sub(self.started.elapsed());
        if !self.ends_within(left) {
            self.child.kill().unwrap();
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            let console = self.tenant.as_ref().map(Tenant::consoles);
            let tail = stdout.chars().rev().take(2000).collect::<Vec<_>>();
            let tail: String = tail.into_iter().rev().collect();
            panic!(
                "not at its end after {:?}; stdout: …{tail}\nstderr: {stderr}\n{}",
                self.limit,
                console.unwrap_or_default()
            );
        }
        let status = self.child.wait().unwrap();
        self.status = Some(status);
        let elapsed = self.started.elapsed();
        processes::assert_no_orphans();
        if let Some(daemon) = site().and_then(|site| site.daemon) {
            let pid = self.pid();
            eventually("its machine is gone", || {
                daemon::guests(daemon, pid).is_empty()
            });
        }
        if let Some(tenant) = self.tenant.take() {
            tenant.assert_nothing_is_left();
        }
        eventually("its output is closed", || {
            *self.stdout.ended.lock().unwrap() && *self.stderr.ended.lock().unwrap()
        });
        Done {
            status,
            stdout: std::mem::take(&mut self.stdout.bytes.lock().unwrap()),
            stderr: self.stderr.text(),
            elapsed,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

impl Done {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended the launcher itself.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        let (stdout, stderr) = (self.text(), &self.stderr);
        let tail = stdout.chars().take(2000).collect::<String>();
        assert_eq!(
            self.code(),
            Some(code),
            "{}; stdout: {tail}\nstderr: {stderr}",
            self.status
        );
        self
    }

    /// Exactly this on standard output.
    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert_eq!(self.text(), text, "stderr: {}", self.stderr);
        self
    }

    /// Every one of these somewhere on standard output.
    #[track_caller]
    pub(crate) fn shows(self, texts: &[&str]) -> Self {
        let stdout = self.text();
        for text in texts {
            assert!(
                stdout.contains(text),
                "no {text:?} in: {stdout}\nstderr: {}",
                self.stderr
            );
        }
        self
    }

    /// Every one of these somewhere on standard error.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "no {text:?} in: {}",
                self.stderr
            );
        }
        self
    }

    /// Nothing on standard error.
    #[track_caller]
    pub(crate) fn quietly(self) -> Self {
        assert_eq!(self.stderr, "");
        self
    }
}
