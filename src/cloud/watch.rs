//! Staying with a job: its output as it grows, signals for it, time that runs out, its report.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use apppot_cloud::{Ec2, Instance};
use apppot_contract::store::{MAX_CONTROL, REFRESH, SAVING};
use apppot_contract::Report;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::objects::{is_of_machine, Objects, Position, Sizes, REPORT};
use super::plan::Plan;
use crate::cli::General;
use crate::failure::warn;
use crate::outcome::{printable, Ending, Lost};
use crate::session::{ends_the_job, Signals};

/// Between two looks at the objects.
pub(super) const POLL: Duration = Duration::from_secs(2);
/// Between two looks at the machine: clouds do not like to be asked often.
const LOOK: Duration = Duration::from_secs(10);
/// A machine that has not stored anything in this time will not.
const BOOT: Duration = Duration::from_secs(600);
/// So long the cloud may not know a machine that it has just started.
pub(super) const UNKNOWN: Duration = Duration::from_secs(120);
/// How long after the deadline a store that does not answer is asked for what is there.
const BLINDNESS: Duration = Duration::from_secs(120);
/// So many requests in a row that fail are spoken of; single ones do, now and then.
pub(super) const MANY: u32 = 3;
/// Read at once of the job's output, bytes.
const PIECE: u64 = 1 << 20;
/// What a reader gets to take the rest of the output when the launcher has been asked to end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// What a pipe that is ready takes without waiting (PIPE_BUF of pipe(7)).
const READY: usize = 4096;

/// How it ended.
pub(super) struct Watched {
    pub(super) ending: Ending,
    /// Streams that were not carried whole, and why.
    pub(super) failures: Vec<(&'static str, String)>,
}

/// One of the job's outputs.
struct Tail {
    stream: &'static str,
    at: Position,
    failure: Option<String>,
}

pub(super) struct Watch<'a> {
    plan: &'a Plan,
    objects: &'a Objects,
    ec2: &'a Ec2,
    instance: &'a str,
    signals: &'a mut Signals,
    general: &'a General,
    tails: [Tail; 2],
    started: Instant,
    /// What the machine has stored, bytes, and when that was last seen to grow.
    stored: Option<u64>,
    grown: Instant,
    next_look: Instant,
    /// How many times in a row the cloud has not answered.
    troubles: u32,
    /// Since when nobody knows what the machine has stored.
    blind: Option<Instant>,
    /// Signals for the job, a line each.
    control: String,
    /// Whether the last of them have not been stored yet.
    is_unsent: bool,
    /// The first signal that asked the launcher to end.
    asked: Option<i32>,
    /// When the job is ended that does not end.
    force_at: Option<Instant>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        objects: &'a Objects,
        ec2: &'a Ec2,
        instance: &'a str,
        signals: &'a mut Signals,
        general: &'a General,
    ) -> Self {
        let now = Instant::now();
        let tail = |stream| Tail {
            stream,
            at: Position::default(),
            failure: None,
        };
        Watch {
            plan,
            objects,
            ec2,
            instance,
            signals,
            general,
            tails: [tail("stdout"), tail("stderr")],
            started: now,
            stored: None,
            grown: now,
            next_look: now + LOOK,
            troubles: 0,
            blind: None,
            control: String::new(),
            is_unsent: false,
            asked: None,
            force_at: None,
        }
    }

    /// Until there is a report, or no hope of one. The machine may still be there.
    pub(super) fn run(mut self) -> Result<Watched> {
        let ending = loop {
            if let Some(ending) = self.look()? {
                break ending;
            }
            if self.is_unsent {
                self.store_control()?;
            }
            if let Some(ending) = self.enforce_time()? {
                break ending;
            }
            let pause = self.force_at.map_or(POLL, |at| {
                POLL.min(at.saturating_duration_since(Instant::now()))
            });
            self.wait(None, Some(pause))?;
            if let Some(ending) = self.take_signals()? {
                break ending;
            }
        };
        if let Ending::Reported(report) = &ending {
            if !self.general.quiet {
                let notes = report.notes.iter();
                notes.for_each(|note| warn(&printable(note.as_bytes())));
            }
        }
        let failures = self
            .tails
            .into_iter()
            .filter_map(|tail| Some(("the command's output could not be written", tail.failure?)));
        Ok(Watched {
            ending,
            failures: failures.collect(),
        })
    }

    /// One look at everything.
    fn look(&mut self) -> Result<Option<Ending>> {
        // First at the machine: what it has stored before its end is there then.
        let end = self.machine_end()?;
        let listed = self.objects.list();
        let Some(sizes) = self.bear(listed)? else {
            self.blind.get_or_insert_with(Instant::now);
            return Ok(None);
        };
        self.blind = None;
        self.note_growth(&sizes);
        for which in 0..self.tails.len() {
            if let Some(ending) = self.pass_on(which, &sizes)? {
                return Ok(Some(ending));
            }
        }
        let (reported, ended) = (sizes.contains_key(REPORT), end.is_some());
        let has_more =
            |tail: &Tail| tail.failure.is_none() && tail.at.has_more(&sizes, tail.stream);
        if (reported || ended) && self.tails.iter().any(has_more) {
            // What could not be read now is read before the end.
            self.next_look = Instant::now();
            return Ok(None);
        }
        if reported {
            let report = self.objects.report();
            let text = self.bear(report)?.flatten();
            return Ok(text.map(|text| match Report::decode(&text) {
                Ok(report) => Ending::Reported(report),
                Err(error) => Ending::Lost(Lost::new(format!("its report is none: {error}"))),
            }));
        }
        Ok(end.map(|reason| match self.asked {
            Some(signal) => Ending::Stopped(signal),
            None => Ending::Lost(Lost::new(reason)),
        }))
    }

    fn note_growth(&mut self, sizes: &Sizes) {
        let own = sizes.iter().filter(|(name, _)| is_of_machine(name));
        let own: Vec<u64> = own.map(|(_, size)| *size).collect();
        if own.is_empty() {
            return;
        }
        let stored = own.iter().sum();
        if self.stored.replace(stored) != Some(stored) {
            self.grown = Instant::now();
        }
    }

    /// What there is of an answer of the cloud's; `None` when it may come later.
    fn bear<T>(&mut self, answer: apppot_cloud::Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => {
                self.troubles = 0;
                Ok(Some(answer))
            }
            Err(error) if error.passes() => {
                self.troubles += 1;
                if self.troubles == MANY && !self.general.quiet {
                    warn(&format!(
                        "{error}; it is asked again until the job's deadline"
                    ));
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Why the machine has ended, if it has.
    fn machine_end(&mut self) -> Result<Option<String>> {
        let now = Instant::now();
        if now < self.next_look {
            return Ok(None);
        }
        self.next_look = now + LOOK;
        let found = self.ec2.instances("instance-id", self.instance);
        let Some(found) = self.bear(found)? else {
            return Ok(None);
        };
        Ok(match found.first() {
            Some(machine) => machine.has_ended().then(|| reason(machine)),
            None if self.started.elapsed() < UNKNOWN => None,
            None => Some(String::from("the cloud does not know the machine any more")),
        })
    }

    /// Writes what is new of an output.
    fn pass_on(&mut self, which: usize, sizes: &Sizes) -> Result<Option<Ending>> {
        loop {
            let tail = &mut self.tails[which];
            if tail.failure.is_some() || !tail.at.has_more(sizes, tail.stream) {
                return Ok(None);
            }
            let piece = tail.at.read(self.objects, tail.stream, PIECE);
            let Some(piece) = self.bear(piece)?.flatten() else {
                return Ok(None);
            };
            if let Some(ending) = self.write(which, &piece)? {
                return Ok(Some(ending));
            }
        }
    }

    /// Writes for as long as the reader takes and nobody wants the launcher to end.
    fn write(&mut self, which: usize, mut bytes: &[u8]) -> Result<Option<Ending>> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        while !bytes.is_empty() {
            let to = match which {
                0 => stdout.as_fd(),
                _ => stderr.as_fd(),
            };
            let patience = self.asked.map(|_| LAST_OUTPUT);
            let is_ready = self.wait(Some(to), patience)?;
            if let Some(ending) = self.take_signals()? {
                return Ok(Some(ending));
            }
            let written = match is_ready {
                true => nix::unistd::write(to, &bytes[..bytes.len().min(READY)]),
                false if patience.is_some() => Err(nix::Error::ETIMEDOUT),
                false => continue,
            };
            match written {
                Ok(len) => bytes = &bytes[len..],
                Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
                Err(errno) => {
                    self.tails[which].failure = Some(io::Error::from(errno).to_string());
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Until a signal comes, `output` takes something, or the time is over. Whether it takes something.
    fn wait(&self, output: Option<BorrowedFd<'_>>, most: Option<Duration>) -> Result<bool> {
        let most = most.map_or(PollTimeout::NONE, |most| {
            PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(output.map(|output| PollFd::new(output, PollFlags::POLLOUT)));
        match poll(&mut fds, most) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the machine"),
        }
        let output = fds.get(1).and_then(PollFd::revents);
        Ok(output.is_some_and(|events| !events.is_empty()))
    }

    /// Passes signals on to the job. The second one that asks for the end, or one while nothing runs yet, ends
    /// the machine.
    fn take_signals(&mut self) -> Result<Option<Ending>> {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGWINCH {
                continue;
            }
            let ends = ends_the_job(signal);
            if ends && (self.asked.is_some() || self.stored.is_none()) {
                return Ok(Some(Ending::Stopped(self.asked.unwrap_or(signal))));
            }
            if ends {
                self.asked = Some(signal);
                self.force_at = Some(Instant::now() + self.plan.grace + REFRESH);
            }
            self.send(signal)?;
        }
        Ok(None)
    }

    fn send(&mut self, signal: i32) -> Result<()> {
        // The machine reads so many bytes of them: there is to be room for those that end the job.
        let is_last = ends_the_job(signal) || signal == libc::SIGKILL;
        if !is_last && self.control.len() > MAX_CONTROL - 1024 {
            return Ok(());
        }
        self.control.push_str(&format!("{signal}\n"));
        self.store_control()
    }

    fn store_control(&mut self) -> Result<()> {
        let sent = self.objects.put_control(&self.control);
        self.is_unsent = self.bear(sent)?.is_none();
        if self.is_unsent && self.force_at.is_some() {
            // The job has its grace from when it hears of the end.
            self.force_at = Some(Instant::now() + self.plan.grace + REFRESH);
        }
        Ok(())
    }

    fn enforce_time(&mut self) -> Result<Option<Ending>> {
        let now = Instant::now();
        if self.force_at.is_some_and(|at| at <= now) {
            self.force_at = None;
            self.grown = now;
            self.send(libc::SIGKILL)?;
        }
        // It stores what it has in large pieces, and for so long.
        let has_grown = self.grown + SAVING > now;
        if let (Some(signal), None, false) = (self.asked, self.force_at, has_grown) {
            return Ok(Some(Ending::Stopped(signal)));
        }
        let past = SystemTime::now().duration_since(self.plan.deadline).ok();
        // The launcher may have been stopped for long, or cut off: that says nothing of the machine.
        let knows = self
            .blind
            .is_none_or(|since| past.is_some() && since + BLINDNESS < now);
        Ok(match past {
            _ if !knows => None,
            Some(_) if self.stored.is_none() => Some(Ending::TooLate),
            Some(past) if past > self.plan.grace + SAVING && !has_grown => Some(Ending::TimedOut),
            None if self.stored.is_none() && self.started.elapsed() > BOOT => {
                Some(Ending::Lost(Lost::no_hello(BOOT)))
            }
            _ => None,
        })
    }
}

/// Why a machine has ended, in words (EC2's reference on state reasons).
fn reason(machine: &Instance) -> String {
    let (code, message) = machine.reason.clone().unwrap_or_default();
    match &code[..] {
        _ if machine.state == "stopped" => String::from("the machine was stopped by someone else"),
        "Client.UserInitiatedShutdown" => {
            String::from("the machine was terminated by someone else")
        }
        "Client.InstanceInitiatedShutdown" => {
            String::from("the machine powered off without a report")
        }
        "Server.SpotInstanceTermination" | "Server.SpotInstanceShutdown" => {
            String::from("the cloud took the spot machine back")
        }
        "" => String::from("the machine ended, and the cloud does not say why"),
        _ => printable(format!("the machine ended: {code}: {message}").as_bytes()),
    }
}
