//! The session's end: signals that ask for it, time that runs out, the machine's own end, and what is to be
//! finished then.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use apppot_backends::MachineEnd;
use apppot_contract::link::Frame;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::files::Files;
use super::output::Output;
use super::signals::ends_the_job;
use super::{terminal, timeout, Ended, Session};
use crate::outcome::{Ending, Lost};

impl Session<'_> {
    pub(super) fn take_signals(&mut self) -> Result<()> {
        while let Some(signal) = self.signals.next() {
            match signal {
                libc::SIGWINCH => {
                    if let Some((rows, columns)) = terminal::size().filter(|_| self.terms.terminal)
                    {
                        self.sender.send(&Frame::Resize { rows, columns });
                    }
                }
                _ => self.take_signal(signal)?,
            }
        }
        Ok(())
    }

    /// Somebody else wants the machine to shut down: the job ends as by SIGTERM.
    pub(super) fn shut_down(&mut self) -> Result<()> {
        // Whoever reads our standard error may not do so now.
        self.outputs[1]
            .note("warning: somebody asked the machine to shut down, so the job is asked to end\n");
        self.take_signal(libc::SIGTERM)
    }

    fn take_signal(&mut self, signal: i32) -> Result<()> {
        let ends = ends_the_job(signal);
        let again = ends && self.asked.is_some();
        if ends && self.asked.is_none() {
            self.asked = Some(signal);
        }
        let early = self.is_early();
        if early || self.report.is_some() || (self.returning && again) {
            // Nothing runs yet, or nothing any more; or results are not wanted.
            if ends {
                self.machine.kill()?;
            } else if early && !self.waiting.contains(&signal) {
                self.waiting.push(signal);
            }
            return Ok(());
        }
        self.send_signal(signal);
        if ends && self.shutdown_at.is_none() {
            let shutdown = Instant::now() + self.terms.grace;
            self.shutdown_at = Some(shutdown);
            let kill = shutdown + self.terms.last_words;
            self.kill_at = Some(self.kill_at.map_or(kill, |earlier| earlier.min(kill)));
        }
        Ok(())
    }

    /// Whether the agent is not there, or has not got the command's files.
    fn is_early(&self) -> bool {
        self.boot.is_none() || self.files.as_ref().is_some_and(Files::is_sending)
    }

    /// Sends the signals that have waited for the command, if it is time. The agent keeps them until the command
    /// runs.
    pub(super) fn send_waiting(&mut self) {
        if self.waiting.is_empty() || self.is_early() {
            return;
        }
        for signal in std::mem::take(&mut self.waiting) {
            self.send_signal(signal);
        }
    }

    fn send_signal(&self, signal: i32) {
        // Signal numbers are below 65.
        self.sender.send(&Frame::Signal(signal as u8));
    }

    /// When the agent must be there, if it is not.
    pub(super) fn boot_deadline(&self) -> Option<Instant> {
        self.terms.deadline.filter(|_| self.boot.is_none())
    }

    pub(super) fn enforce_time(&mut self) -> Result<Option<Ending>> {
        let now = Instant::now();
        if self.boot_deadline().is_some_and(|deadline| deadline <= now) {
            self.machine.kill()?;
            return Ok(Some(Ending::TooLate));
        }
        if self.shutdown_at.is_some_and(|at| at <= now) {
            self.shutdown_at = None;
            self.sender.send(&Frame::Shutdown);
        }
        if self.kill_at.is_none_or(|at| at > now) {
            return Ok(None);
        }
        self.machine.kill()?;
        let past_deadline = self.terms.deadline.is_some_and(|deadline| deadline <= now);
        Ok(Some(match (self.report.take(), self.asked) {
            (Some(report), _) => Ending::Reported(report),
            (None, Some(signal)) => Ending::Stopped(signal),
            (None, None) if past_deadline => Ending::TimedOut,
            (None, None) => Ending::Lost(Lost::no_hello(self.terms.boot_patience)),
        }))
    }

    /// The machine has ended; what it said before is still to be read.
    pub(super) fn machine_ended(&mut self) -> Result<Ending> {
        self.stream
            .set_read_timeout(Some(Duration::from_millis(100)))?;
        while let Ok(true) = self.read_link() {}
        while self.read_console() {}
        let end = self.machine.wait(None)?.unwrap_or(MachineEnd::PoweredOff);
        Ok(match (self.report.take(), self.asked) {
            (Some(report), _) => Ending::Reported(report),
            (None, Some(signal)) => Ending::Stopped(signal),
            (None, None) => Ending::Lost(Lost::machine(end)),
        })
    }

    /// Writes out what is left, and puts the terminal back.
    pub(super) fn finish(mut self, mut ending: Ending) -> Result<Ended> {
        let total = self.started.elapsed();
        for output in &mut self.outputs {
            output.close();
        }
        ending = self.settle_files(ending)?;
        if let Some(given_up) = self.write_out()? {
            ending = given_up;
        }
        self.raw = None;
        if let Ending::Lost(lost) = &mut ending {
            lost.console = self.console.tail();
        }
        for (what, reason) in self.broken_streams() {
            match ending.exit_status() {
                0 => ending = Ending::Lost(Lost::stream(what, reason)),
                _ => crate::failure::warn(&format!("{what}: {reason}")),
            }
        }
        Ok(Ended {
            ending,
            boot: self.boot,
            total,
        })
    }

    /// Waits until the results are in their places, unless somebody wants the launcher to end. What is
    /// not there changes how the job ended.
    fn settle_files(&mut self, ending: Ending) -> Result<Ending> {
        let Some(files) = &mut self.files else {
            return Ok(ending);
        };
        files.close(ending.has_results())?;
        while let Some(ended) = files.ended() {
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended, PollFlags::empty()),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for the results"),
            }
            if fds[1].revents().is_some_and(|events| !events.is_empty()) {
                break;
            }
            while let Some(signal) = self.signals.next() {
                if ends_the_job(signal) {
                    self.outputs[1].note("warning: results are not all in their places\n");
                    return Ok(Ending::Stopped(signal));
                }
            }
        }
        Ok(match files.received().map(|received| received.failure) {
            Some(None) => ending,
            Some(Some(failure)) => ending.without_results(failure),
            None if self.boot.is_some() && !files.is_sending() => ending.without_any_results(),
            None => ending,
        })
    }

    /// The streams that were not carried whole, and why.
    fn broken_streams(&self) -> Vec<(&'static str, &str)> {
        let outputs = self.outputs.iter().filter_map(Output::failure);
        let outputs = outputs.map(|why| ("the command's output could not be written", why));
        let input = self.input_failure.get();
        let input = input.map(|why| ("standard input could not be read to its end", why.as_str()));
        outputs.chain(input).collect()
    }

    /// Waits until everything has been written, for as long as the readers take and nobody wants the
    /// launcher to end; then how it ended instead.
    fn write_out(&mut self) -> Result<Option<Ending>> {
        let terms = self.terms;
        let limit = terms
            .deadline
            .map(|deadline| deadline + terms.grace + terms.last_words);
        // Whoever has asked for the end has waited for the grace already.
        let asked = self.asked.map(|_| Instant::now() + LAST_OUTPUT);
        let until = limit.into_iter().chain(asked).min();
        loop {
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            for output in &self.outputs {
                let mut ended = [PollFd::new(output.ended(), PollFlags::empty())];
                poll(&mut ended, PollTimeout::ZERO)?;
                if ended[0].revents().is_none_or(|events| events.is_empty()) {
                    fds.push(PollFd::new(output.ended(), PollFlags::empty()));
                }
            }
            if fds.len() == 1 {
                return Ok(None);
            }
            match poll(&mut fds, timeout(until)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for the output"),
            }
            while let Some(signal) = self.signals.next() {
                if ends_the_job(signal) {
                    return Ok(Some(Ending::Stopped(signal)));
                }
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok(Some(self.asked.map_or(Ending::TimedOut, Ending::Stopped)));
            }
        }
    }
}

/// What a reader gets to take the rest of the output when the launcher has been asked to end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
