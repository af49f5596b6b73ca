//! What all threads of the courier know and do together.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apppot_contract::link::Frame;
use apppot_contract::{Outcome, Report};

use crate::link::Sender;

/// The most notes that are kept; a report takes no more.
const NOTES: usize = 12;

const TERM: u8 = 15;

/// A line on the console. It holds no URL's query.
pub(crate) fn say(text: &str) {
    eprintln!("apppot-courier: {text}");
}

/// Locks, also after a thread has panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The job as the courier sees it.
pub(crate) struct Shared {
    sender: Sender,
    grace: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    notes: Vec<String>,
    /// The first thing that went wrong.
    failure: Option<Outcome>,
    /// The agent has the job's files: from then on it takes signals.
    is_open: bool,
    /// Signals that came before.
    held: Vec<u8>,
    /// The job has been asked to end by us.
    is_ending: bool,
}

impl Shared {
    pub(crate) fn new(sender: Sender, grace: Duration) -> Self {
        Shared {
            sender,
            grace,
            state: Mutex::default(),
        }
    }

    /// Adds to the report.
    pub(crate) fn note(&self, text: &str) {
        say(text);
        let mut state = lock(&self.state);
        if state.notes.len() < NOTES {
            state.notes.push(text.to_owned());
        }
    }

    /// Sends the job a signal, as soon as it takes some.
    pub(crate) fn signal(&self, number: u8) {
        let mut state = lock(&self.state);
        match state.is_open {
            true => self.sender.send(&Frame::Signal(number)),
            false => state.held.push(number),
        }
    }

    /// The agent has the job's files.
    pub(crate) fn open(&self) {
        let mut state = lock(&self.state);
        state.is_open = true;
        for number in std::mem::take(&mut state.held) {
            self.sender.send(&Frame::Signal(number));
        }
    }

    /// Something went wrong for good: the job is ended, and the report says that of the first such thing.
    pub(crate) fn fail(&self, outcome: Outcome) {
        if let Outcome::Failed { step, reason } = &outcome {
            say(&format!("{step}: {reason}"));
        }
        lock(&self.state).failure.get_or_insert(outcome);
        self.end_job();
    }

    /// Asks the job to end, and ends it after its grace. Before there is one, the link is cut.
    pub(crate) fn end_job(&self) {
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.is_ending, true) {
            return;
        }
        if !state.is_open {
            self.sender.cut();
            return;
        }
        self.sender.send(&Frame::Signal(TERM));
        let (sender, grace) = (self.sender.clone(), self.grace);
        // Without a thread it has been asked, and its deadline remains.
        let _ = std::thread::Builder::new().spawn(move || {
            std::thread::sleep(grace);
            sender.send(&Frame::Shutdown);
        });
    }

    /// The report to be stored; `report` is the agent's, if it has sent one.
    pub(crate) fn report(&self, report: Option<Report>) -> Report {
        let mut state = lock(&self.state);
        let failure = state.failure.take();
        let mut report = report.unwrap_or_else(|| {
            Report::of(Outcome::Failed {
                step: String::from("running the job"),
                reason: String::from("the agent has ended without a report"),
            })
        });
        if let Some(failure) = failure {
            let ended = match &report.outcome {
                Outcome::Exited { status } => {
                    Some(format!("the command exited with status {status}"))
                }
                Outcome::Signalled { signal } => Some(format!("signal {signal} ended the command")),
                _ => None,
            };
            state.notes.extend(ended);
            report.outcome = failure;
        }
        report.notes.append(&mut state.notes);
        report
    }
}
