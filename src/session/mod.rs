//! The session: serves the link from the agent's hello to its report.
//!
//! The main thread reads the link, signals and the machine's end, and never waits for anything
//! else: threads write the command's output, read standard input and write to the link. What is
//! on its way between them is bounded by the link's credit.

pub(crate) mod console;
mod end;
mod feed;
mod files;
mod input;
mod output;
mod sender;
mod signals;
pub(crate) mod terminal;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use apppot_backends::{Link, Machine};
use apppot_contract::link::{Decoder, Frame, Stream, MAX_PAYLOAD, PROTOCOL, WINDOW};
use apppot_contract::Report;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use self::console::Console;
use self::feed::{Feed, Returns};
use self::files::Files;
use self::output::Output;
use self::sender::Sender;
pub(crate) use self::signals::{ends_the_job, Signals};
use self::terminal::RawTerminal;
use crate::outcome::{printable, Ending, Lost};
use crate::staging::Staging;

/// What the session needs to know about the job.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Whether standard input is read.
    pub(crate) reads_stdin: bool,
    /// Whether the command has a terminal; then ours is put into raw mode.
    pub(crate) terminal: bool,
    /// When the job must have ended.
    pub(crate) deadline: Option<Instant>,
    /// Time between asking the job to end and ending it.
    pub(crate) grace: Duration,
    /// What the guest gets beyond deadline and grace to report, and then to power off.
    pub(crate) last_words: Duration,
    /// A machine whose agent has not come up in this time will not.
    pub(crate) boot_patience: Duration,
    /// Whether the machine has a disk to leave in order after its report.
    pub(crate) leaves_disk: bool,
    /// The job's files, when they travel.
    pub(crate) files: Option<Arc<Staging>>,
    /// Whether the guest's console is shown.
    pub(crate) show_console: bool,
    /// Whether the guest's warnings are shown.
    pub(crate) show_warnings: bool,
    /// Where the command's output goes; `None`: to our own streams.
    pub(crate) transcript: Option<File>,
}

/// Results that have not moved for so long will not, when the job was to have ended.
const RESULTS_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether signals that wait can be sent.
const WAITING_STEP: Duration = Duration::from_millis(20);

/// How the session ended, and when what happened.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    /// From the start of the machine to the agent's hello.
    pub(crate) boot: Option<Duration>,
    /// From the start of the machine to its end.
    pub(crate) total: Duration,
}

/// Serves `machine` until it has ended.
///
/// # Errors
/// The host's side fails: the link or the terminal cannot be used.
pub(crate) fn serve(machine: &mut dyn Machine, signals: Signals, terms: &Terms) -> Result<Ended> {
    let link = machine.link().context("the backend gave no link")?;
    let mut session = Session::new(machine, link, signals, terms)?;
    let ending = session.run()?;
    session.finish(ending)
}

struct Session<'a> {
    machine: &'a mut dyn Machine,
    terms: &'a Terms,
    stream: UnixStream,
    /// Whether nothing will come over it any more.
    link_has_ended: bool,
    decoder: Decoder,
    buffer: Vec<u8>,
    sender: Sender,
    console: Console,
    signals: Signals,
    outputs: [Output; 2],
    input: Option<Returns>,
    /// Why standard input could not be read to its end.
    input_failure: Arc<OnceLock<String>>,
    files: Option<Files>,
    /// Whether the command has ended and its results are on their way.
    returning: bool,
    document: Option<String>,
    ring: Option<apppot_backends::Ring>,
    files_ring: Option<apppot_backends::Ring>,
    raw: Option<RawTerminal>,
    started: Instant,
    boot: Option<Duration>,
    report: Option<Report>,
    /// Signals for the command that came before it could be sent any.
    waiting: Vec<i32>,
    /// The first signal that asked the launcher to end.
    asked: Option<i32>,
    /// When the agent is told to end the job.
    shutdown_at: Option<Instant>,
    /// When the machine is killed.
    kill_at: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(
        machine: &'a mut dyn Machine,
        link: Link,
        signals: Signals,
        terms: &'a Terms,
    ) -> Result<Self> {
        let started = Instant::now();
        let console = Console::new(machine.console(), terms.show_console)?;
        let sender = Sender::new(link.stream.try_clone()?, link.capacity);
        let kill_at = match terms.deadline {
            Some(deadline) => deadline + terms.grace + terms.last_words,
            None => started + terms.boot_patience,
        };
        let files = terms.files.clone().map(Files::new).transpose()?;
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let (out, errors) = match &terms.transcript {
            Some(file) => (file.as_fd(), file.as_fd()),
            None => (stdout.as_fd(), stderr.as_fd()),
        };
        Ok(Session {
            outputs: [
                Output::new(Stream::Stdout, out, sender.clone())?,
                Output::new(Stream::Stderr, errors, sender.clone())?,
            ],
            machine,
            terms,
            stream: link.stream,
            link_has_ended: false,
            decoder: Decoder::default(),
            buffer: vec![0; 4 * MAX_PAYLOAD],
            sender,
            console,
            signals,
            input: None,
            input_failure: Arc::default(),
            files,
            returning: false,
            document: link.document,
            ring: link.ring,
            files_ring: link.files_ring,
            raw: None,
            started,
            boot: None,
            report: None,
            waiting: Vec::new(),
            asked: None,
            shutdown_at: None,
            kill_at: Some(kill_at),
        })
    }

    /// Until the machine has ended or been given up.
    fn run(&mut self) -> Result<Ending> {
        loop {
            let ready = self.poll()?;
            if ready.console {
                self.read_console();
            }
            if ready.link {
                if let Err(lost) = self.read_link() {
                    self.machine.kill()?;
                    return Ok(Ending::Lost(lost));
                }
            }
            if ready.files_failed {
                self.machine.kill()?;
                return Ok(match self.returning {
                    true => Ending::Unreturned(String::new()),
                    false => Ending::Unsent,
                });
            }
            if ready.signals {
                self.take_signals()?;
            }
            if ready.shutdown && self.asked.is_none() {
                self.shut_down()?;
            }
            self.send_waiting();
            if ready.ended {
                return self.machine_ended();
            }
            if let Some(ending) = self.enforce_time()? {
                return Ok(ending);
            }
        }
    }

    fn poll(&mut self) -> Result<Ready> {
        // Files on their way to the guest say nothing when they are there.
        let again = (self.boot.is_some() && !self.waiting.is_empty())
            .then(|| Instant::now() + WAITING_STEP);
        let next = [self.shutdown_at, self.kill_at, self.boot_deadline(), again];
        let next = next.into_iter().flatten().min();
        // Its end is no news, and would be told again and again.
        let link = match self.link_has_ended {
            true => self.machine.ended(),
            false => self.stream.as_fd(),
        };
        let mut fds = vec![
            PollFd::new(link, PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.machine.ended(), PollFlags::POLLIN),
        ];
        let working = self.files.as_ref().filter(|_| self.report.is_none());
        let failures = working.map(Files::failures);
        fds.extend(
            failures
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let console = fds.len();
        fds.extend(
            self.console
                .as_fd()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let shutdown = fds.len();
        // Once is enough.
        let requests = self.machine.shutdown_requests();
        let requests = requests.filter(|_| self.asked.is_none());
        fds.extend(requests.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, timeout(next)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the machine"),
        }
        let is = |index: usize| {
            let events = fds.get(index).and_then(PollFd::revents);
            events.is_some_and(|events| !events.is_empty())
        };
        Ok(Ready {
            link: is(0),
            signals: is(1),
            ended: is(2),
            files_failed: (3..console).any(is),
            console: (console..shutdown).any(is),
            shutdown: is(shutdown),
        })
    }

    /// Reads once, and deals with the frames that are whole. An end of the stream is no news: the
    /// machine's own end is.
    fn read_link(&mut self) -> Result<bool, Lost> {
        let len = match self.stream.read(&mut self.buffer) {
            Ok(0) => {
                self.link_has_ended = true;
                return Ok(false);
            }
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.link_has_ended = true;
                return Ok(false);
            }
            Err(error) => return Err(Lost::link(&error)),
        };
        self.decoder.feed(&self.buffer[..len]);
        // The decoder lends from itself while the rest of the session is needed.
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = self.take_frames(&mut decoder);
        self.decoder = decoder;
        result.map(|()| true)
    }

    fn take_frames(&mut self, decoder: &mut Decoder) -> Result<(), Lost> {
        while let Some(frame) = decoder.next().map_err(|error| Lost::link(&error))? {
            self.take(&frame)?;
        }
        Ok(())
    }

    fn take(&mut self, frame: &Frame) -> Result<(), Lost> {
        // The report is the last frame.
        if self.report.is_some() {
            return Ok(());
        }
        match *frame {
            Frame::Hello { protocol, agent } => self.greet(protocol, agent),
            Frame::Stdout(bytes) => self.outputs[0].push(bytes),
            Frame::Stderr(bytes) => self.outputs[1].push(bytes),
            Frame::Credit(Stream::Stdin, bytes) => {
                if let Some(input) = &self.input {
                    input.credit(bytes);
                }
                Ok(())
            }
            Frame::Credit(Stream::Files, bytes) => {
                if let Some(files) = &self.files {
                    files.credit(bytes);
                }
                Ok(())
            }
            Frame::Files(bytes) => self.take_results(bytes),
            Frame::Received(bytes) => {
                self.sender.received(bytes);
                Ok(())
            }
            Frame::Log(text) => {
                if self.terms.show_warnings {
                    self.outputs[1].note(&format!("warning: {}\n", printable(text)));
                }
                Ok(())
            }
            Frame::Report(text) => {
                let report = Report::decode(text).map_err(|error| Lost::link(&error))?;
                self.report = Some(report);
                // The agent powers off when it hears that nothing is on its way any more.
                self.sender.send(&Frame::Shutdown);
                // All is in place; a machine that does not power off by itself need not. One whose
                // writes vanish has nothing more to do.
                let end = match self.terms.leaves_disk {
                    true => Instant::now() + self.terms.last_words,
                    false => Instant::now(),
                };
                self.kill_at = Some(self.kill_at.map_or(end, |earlier| earlier.min(end)));
                self.shutdown_at = None;
                Ok(())
            }
            _ => Err(Lost::link(&"a frame that only the launcher sends")),
        }
    }

    /// The agent is there.
    fn greet(&mut self, protocol: u8, agent: &[u8]) -> Result<(), Lost> {
        if self.boot.is_some() {
            return Err(Lost::link(&"a second hello"));
        }
        if protocol != PROTOCOL {
            let agent = printable(agent);
            return Err(Lost::link(&format!(
                "agent {agent} speaks version {protocol} of the link"
            )));
        }
        self.boot = Some(self.started.elapsed());
        if self.terms.deadline.is_none() && self.asked.is_none() {
            self.kill_at = None;
        }
        if let Some(document) = self.document.take() {
            for piece in document.as_bytes().chunks(MAX_PAYLOAD) {
                self.sender.send(&Frame::Contract(piece));
            }
            self.sender.send(&Frame::Contract(b""));
        }
        if self.terms.terminal {
            self.raw = RawTerminal::enter();
        }
        self.start_feeding().map_err(|error| Lost::link(&error))
    }

    /// Starts the thread that sends the job's files, and then standard input.
    fn start_feeding(&mut self) -> io::Result<()> {
        let stdin = self.terms.reads_stdin.then(|| {
            let feed = Feed::new(self.sender.clone(), Stream::Stdin, self.ring.take());
            self.input = Some(feed.returns());
            feed
        });
        let ring = self.files_ring.take();
        let feed = Feed::new(self.sender.clone(), Stream::Files, ring);
        let send = self.files.as_mut().and_then(|files| files.sender(feed));
        if stdin.is_none() && send.is_none() {
            return Ok(());
        }
        let failure = Arc::clone(&self.input_failure);
        let feeding = move || {
            let sent = send.is_none_or(|send| send());
            if let Some(feed) = stdin.filter(|_| sent) {
                input::pass_on(feed, &failure);
            }
        };
        let thread = std::thread::Builder::new().name(String::from("stdin"));
        thread.spawn(feeding).map(drop)
    }

    /// Takes a piece of the results. As long as they come, there is no reason to end the machine.
    fn take_results(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let Some(files) = &mut self.files else {
            return Err(Lost::link(&"files that nobody has asked for"));
        };
        files.push(bytes, &self.sender)?;
        self.returning = true;
        let patience = Instant::now() + RESULTS_PATIENCE;
        self.kill_at = self.kill_at.map(|at| at.max(patience));
        Ok(())
    }

    /// Reads the console once. Whether there was something.
    fn read_console(&mut self) -> bool {
        let text = self.console.read();
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            self.outputs[1].note(text);
        }
        text.is_some()
    }
}

fn timeout(until: Option<Instant>) -> PollTimeout {
    until.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    })
}

/// What has something to read.
struct Ready {
    link: bool,
    signals: bool,
    ended: bool,
    files_failed: bool,
    console: bool,
    shutdown: bool,
}

/// Bytes of output that may be on their way: the guest breaks the rules when it sends more.
const MAX_PENDING: usize = WINDOW;
