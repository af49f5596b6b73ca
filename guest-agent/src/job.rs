//! The job: the command runs, its streams travel, it ends, and the report says how.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use apppot_contract::link::{Frame, Stream, WINDOW};
use apppot_contract::{Boot, Contract, Outcome, Report, Stdin, Usage};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::accounts::Identity;
use crate::channels::JobFiles;
use crate::defaults::ImageCommand;
use crate::failure::{Failure, Step};
use crate::link::{Link, OutputBuffer};
use crate::mounts::Kept;
use crate::process::{self, Running, Waited};
use crate::stdin::Input;
use crate::{shutdown, workload};

/// Runs the contract's workload to its end; `image` is what runs when the contract leaves it to the image.
pub(crate) fn run(
    contract: &Contract,
    image: Option<&ImageCommand>,
    identity: &Identity,
    link: &mut Link,
) -> Result<Report, Failure> {
    std::fs::metadata(&contract.jobdir).step(format!(
        "entering the job directory {}",
        contract.jobdir.display()
    ))?;
    let mut environment = workload::environment(contract, identity);
    let program = match workload::find(contract, image, identity, &environment) {
        Ok(program) => program,
        Err(outcome) => return Ok(Report::of(outcome)),
    };
    if contract.stdin == Stdin::Null && contract.terminal.is_none() && program.is_shell {
        let warning = "no command is given and standard input is empty: the shell ends at once";
        link.send(&Frame::Log(warning.as_bytes()))
            .step("starting the job")?;
    }
    workload::start_in(&mut environment, &program.directory);
    let signals = child_signals().step("preparing for the command's end")?;
    let input = match &contract.stdin {
        Stdin::Ring(device) => Input::ring(device).step("opening standard input")?,
        _ => Input::frames(),
    };
    let started = Instant::now();
    let running = match process::start(&program, &environment, identity, contract) {
        Ok(running) => running,
        Err(error) => return Ok(Report::of(workload::refused(&program, &error))),
    };
    let mut job = Job::new(contract, link, running, input, signals);
    let outcome = job.serve().step("serving the job")?;
    Ok(Report {
        outcome,
        usage: usage(started.elapsed()),
        notes: Vec::new(),
    })
}

/// The report, once everything that the job wrote is safe; a job whose files are lost has failed.
pub(crate) fn saved(
    report: Report,
    kept: Kept,
    files: Option<JobFiles>,
    link: &mut Link,
) -> Report {
    let sent = files.map_or(Ok(()), |files| files.send_back(link));
    match sent.and(kept.write_back()) {
        Ok(()) => report,
        Err(failure) => Report {
            outcome: failure.outcome(),
            ..report
        },
    }
}

/// SIGCHLD as a descriptor; blocked, so that none is lost before it is polled.
fn child_signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// What the job has used: everything that has been waited for.
fn usage(elapsed: Duration) -> Usage {
    use nix::sys::resource::{getrusage, UsageWho};
    let time = |value: nix::sys::time::TimeVal| {
        let micros = value.tv_sec() * 1_000_000 + value.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    match getrusage(UsageWho::RUSAGE_CHILDREN) {
        Ok(used) => Usage {
            elapsed,
            user: time(used.user_time()),
            system: time(used.system_time()),
            max_rss_kib: u64::try_from(used.max_rss()).unwrap_or(0),
        },
        Err(_) => Usage {
            elapsed,
            ..Usage::default()
        },
    }
}

/// One of the command's output streams.
struct Output {
    stream: Stream,
    /// `None` when it has ended.
    pipe: Option<std::fs::File>,
    /// Bytes that the launcher still takes.
    credit: usize,
    /// After the command's end: bytes that it may have written before.
    left: Option<usize>,
}

struct Job<'a> {
    link: &'a mut Link,
    signals: SignalFd,
    running: Running,
    input: Input,
    outputs: [Output; 2],
    buffer: OutputBuffer,
    /// How the command itself ended.
    ended: Option<Outcome>,
    /// When processes that were asked to end are ended.
    kill_at: Option<Instant>,
    deadline: Option<Instant>,
    timed_out: bool,
    grace: Duration,
    boot: Boot,
}

impl<'a> Job<'a> {
    fn new(
        contract: &Contract,
        link: &'a mut Link,
        mut running: Running,
        input: Input,
        signals: SignalFd,
    ) -> Self {
        let stdout = running.stdout.take();
        let stderr = running.stderr.take();
        let output = |stream, pipe| Output {
            stream,
            pipe,
            credit: WINDOW,
            left: None,
        };
        Job {
            link,
            signals,
            running,
            input,
            outputs: [
                output(Stream::Stdout, stdout),
                output(Stream::Stderr, stderr),
            ],
            buffer: OutputBuffer::new(),
            ended: None,
            kill_at: None,
            deadline: contract.deadline.map(|deadline| {
                let left = deadline
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                Instant::now() + left
            }),
            timed_out: false,
            grace: contract.grace,
            boot: contract.boot,
        }
    }

    /// Serves until the command has ended and its output has been sent.
    fn serve(&mut self) -> io::Result<Outcome> {
        // Some may have come with the contract.
        self.take_frames()?;
        while self.ended.is_none() {
            self.turn()?;
        }
        // What the command left running ends with it, and may still have something to say.
        match self.boot {
            Boot::Direct => shutdown::end_processes(self.grace.min(Duration::from_millis(500))),
            Boot::System => signal_group(self.running.pid, libc::SIGKILL),
        }
        self.drain()?;
        match self.ended.take() {
            _ if self.timed_out => Ok(Outcome::TimedOut),
            Some(outcome) => Ok(outcome),
            None => Err(io::Error::other("the command was lost")),
        }
    }

    /// Waits for something to happen, and deals with it.
    fn turn(&mut self) -> io::Result<()> {
        let wants_input = self.running.stdin.is_some() && self.input.has_bytes();
        let mut fds = vec![
            PollFd::new(self.link.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        let watched = |fd: Option<&std::fs::File>| fd.is_some();
        let stdin = self.running.stdin.as_ref().filter(|_| wants_input);
        fds.extend(stdin.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
        let has_stdin = watched(stdin);
        for output in &self.outputs {
            let pipe = output.pipe.as_ref().filter(|_| output.credit > 0);
            fds.extend(pipe.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        drop(fds);
        if ready[0] {
            self.read_link()?;
        }
        if has_stdin && ready[2] || !wants_input {
            self.feed_command()?;
        }
        self.send_output()?;
        if ready[1] {
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap();
        }
        self.enforce_time();
        Ok(())
    }

    fn timeout(&self) -> PollTimeout {
        let next = [self.kill_at, self.deadline].into_iter().flatten().min();
        next.map_or(PollTimeout::NONE, |next| {
            let left = next.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        })
    }

    fn read_link(&mut self) -> io::Result<()> {
        self.link.read()?;
        self.take_frames()
    }

    /// Deals with every frame that has been read whole.
    fn take_frames(&mut self) -> io::Result<()> {
        loop {
            let frame = self.link.next().map_err(io::Error::other)?;
            let Some(frame) = frame else {
                return Ok(());
            };
            match frame {
                Frame::Stdin(bytes) => self.input.push(bytes).map_err(io::Error::other)?,
                Frame::StdinRing(total) => self.input.announce(total).map_err(io::Error::other)?,
                Frame::StdinEof => match self.running.terminal {
                    Some(_) => self.input.end_typed(),
                    None => self.input.end(),
                },
                Frame::Credit(stream, bytes) => {
                    for output in &mut self.outputs {
                        if output.stream == stream {
                            output.credit = (output.credit + bytes as usize).min(WINDOW);
                        }
                    }
                }
                Frame::Close(stream) => {
                    for output in &mut self.outputs {
                        if output.stream == stream {
                            output.pipe = None;
                        }
                    }
                }
                Frame::Resize { rows, columns } => {
                    if let Some(terminal) = &self.running.terminal {
                        process::resize(terminal, rows, columns);
                    }
                }
                // Once it has been waited for, its number may be somebody else's.
                Frame::Signal(_) | Frame::Shutdown if self.ended.is_some() => {}
                Frame::Signal(number) => signal_group(self.running.pid, number.into()),
                Frame::Shutdown => signal_group(self.running.pid, libc::SIGKILL),
                _ => return Err(io::Error::other("a frame that only the agent sends")),
            }
        }
    }

    /// Hands standard input over, and closes it when it has ended.
    fn feed_command(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.running.stdin else {
            return Ok(());
        };
        match self.input.pump(stdin) {
            Ok(None) => {}
            Ok(Some(bytes)) => self.link.send(&Frame::Credit(Stream::Stdin, bytes))?,
            // The command reads no more: what the caller still has stays with the caller.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.running.stdin = None,
            // A terminal whose other side is closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => self.running.stdin = None,
            Err(error) => return Err(error),
        }
        if self.input.is_exhausted() {
            self.running.stdin = None;
        }
        Ok(())
    }

    /// Sends what the command has written, as far as the launcher takes it. Whether there was any.
    fn send_output(&mut self) -> io::Result<bool> {
        let mut sent = false;
        for output in &mut self.outputs {
            let most = output.credit.min(output.left.unwrap_or(usize::MAX));
            let Some(pipe) = &mut output.pipe else {
                continue;
            };
            if most == 0 {
                continue;
            }
            match pipe.read(self.buffer.payload(most)) {
                Ok(0) => output.pipe = None,
                Ok(len) => {
                    let empty = match output.stream {
                        Stream::Stderr => Frame::Stderr(b""),
                        _ => Frame::Stdout(b""),
                    };
                    let frame = self.buffer.frame(&empty, len);
                    self.link.send_encoded(frame)?;
                    output.credit = output.credit.saturating_sub(len);
                    output.left = output.left.map(|left| left.saturating_sub(len));
                    sent = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last user has gone.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => output.pipe = None,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Sends the rest of the output. With `Boot::Direct` every writer has ended, and what is in the
    /// pipes is all; a service may have left some that write on, and they are not waited for: what was
    /// written before the end is no more than a pipe holds.
    fn drain(&mut self) -> io::Result<()> {
        for output in &mut self.outputs {
            output.left = output.pipe.as_ref().map(process::capacity);
        }
        loop {
            if self.send_output()? {
                continue;
            }
            let blocked = self.outputs.iter().any(|output| {
                output.credit == 0 && output.left != Some(0) && output.pipe.is_some()
            });
            if !blocked {
                return Ok(());
            }
            // The launcher's reader is slow: wait until it has returned credit.
            let mut fds = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => self.read_link()?,
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for every process that has ended: the command, and orphans that PID 1 inherits.
    fn reap(&mut self) {
        while let Waited::Ended(pid, outcome) = process::wait_any() {
            if pid == self.running.pid {
                self.ended = Some(outcome);
            }
        }
    }

    fn enforce_time(&mut self) {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timed_out = true;
            self.kill_at = Some(now + self.grace);
            signal_group(self.running.pid, libc::SIGTERM);
        }
        if self.kill_at.is_some_and(|kill_at| kill_at <= now) {
            self.kill_at = None;
            signal_group(self.running.pid, libc::SIGKILL);
        }
    }
}

/// Sends a signal to the command and what it started in its own process group, as a terminal or a
/// batch system does.
fn signal_group(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: kill takes no pointers. The group exists as long as the command is not waited for.
    unsafe { libc::kill(-pid, signal) };
}
