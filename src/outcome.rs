//! How a run ended: exit status, words for people, the report for programs.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use apppot_backends::MachineEnd;
use apppot_contract::{Outcome, Report};
use serde_json::json;

use crate::failure::hinted;

/// AppPot or the machine failed.
pub(crate) const FAILED: u8 = 125;
/// The command exists and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;
/// The time limit was reached.
const TIMED_OUT: u8 = 124;
/// A signal's number is added to this.
const SIGNALLED: u8 = 128;

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The agent said how.
    Reported(Report),
    /// The launcher was asked to end by this signal, and the agent did not get to report.
    Stopped(i32),
    /// The deadline passed before the command was started.
    TooLate,
    /// The deadline passed, and the agent did not get to report.
    TimedOut,
    /// The machine ended without a report, or a stream was not carried whole.
    Lost(Lost),
    /// The job's files could not be sent, which has been said.
    Unsent,
    /// The job ended, and not all of its results are in their places: why, and where they are.
    Unreturned(String),
}

/// A run whose result is lost, and what is known about it.
#[derive(Debug)]
pub(crate) struct Lost {
    what: &'static str,
    reason: String,
    /// The console's last lines.
    pub(crate) console: Vec<String>,
}

/// What is lost when the machine ends without a report.
const NO_REPORT: &str = "the machine ended without reporting how the command ended";

impl Lost {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Lost {
            what: NO_REPORT,
            reason: reason.into(),
            console: Vec::new(),
        }
    }

    /// What came over the link could not be understood.
    pub(crate) fn link(error: &dyn fmt::Display) -> Self {
        Self::new(format!("the guest broke the rules of the link: {error}"))
    }

    /// The command ended well, but what it wrote or was to read did not reach its place: `what`.
    pub(crate) fn stream(what: &'static str, reason: &str) -> Self {
        Lost {
            what,
            ..Self::new(reason)
        }
    }

    /// No agent has spoken.
    pub(crate) fn no_hello(patience: Duration) -> Self {
        Self::new(format!(
            "the guest did not come up within {} s",
            patience.as_secs()
        ))
    }

    /// The machine ended by itself.
    pub(crate) fn machine(end: MachineEnd) -> Self {
        Self::new(match end {
            MachineEnd::PoweredOff => String::from("the guest powered off without a report"),
            MachineEnd::Panicked => String::from("the guest's kernel panicked"),
            MachineEnd::Reset => String::from("the guest's kernel panicked, or the machine was reset"),
            MachineEnd::Stopped => String::from("the hypervisor stopped the machine"),
            MachineEnd::Failed(status) => {
                format!("the hypervisor failed with exit status {status}")
            }
            MachineEnd::Killed(signal) => format!("the hypervisor was ended by signal {signal}"),
            MachineEnd::ShutDown => {
                String::from("the guest powered off, or its kernel panicked or rebooted; libvirt does not say which")
            }
            MachineEnd::Destroyed => String::from("the machine was destroyed by someone else"),
            MachineEnd::Died => {
                String::from("the hypervisor failed; libvirt's log of the machine may say why")
            }
            MachineEnd::Disconnected => {
                String::from("the connection to libvirt was lost, so the machine was ended")
            }
            MachineEnd::Unheard => String::from(
                "the machine ended while the launcher was stopped or did not hear libvirt, which does not say any more how",
            ),
        })
    }
}

/// What the agent says of a failed step; it may end in a line that says what to do.
fn failed(step: &str, reason: &str) -> anyhow::Error {
    let shown = |text: &str| printable(text.as_bytes());
    let error = match reason.split_once("\nhint: ") {
        Some((reason, hint)) => hinted(shown(reason), shown(hint)),
        None => anyhow::anyhow!("{}", shown(reason)),
    };
    error.context(format!("the job failed in {}", shown(step)))
}

impl Ending {
    /// The launcher's exit status.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Ending::Reported(report) => match report.outcome {
                Outcome::Exited { status } => status,
                Outcome::Signalled { signal } => SIGNALLED.saturating_add(signal),
                Outcome::TimedOut => TIMED_OUT,
                Outcome::NotFound { .. } => NOT_FOUND,
                Outcome::NotExecutable { .. } => NOT_EXECUTABLE,
                Outcome::Failed { .. } => FAILED,
            },
            Ending::Stopped(signal) => SIGNALLED.saturating_add(u8::try_from(*signal).unwrap_or(0)),
            Ending::TooLate | Ending::TimedOut => TIMED_OUT,
            Ending::Lost(_) | Ending::Unsent | Ending::Unreturned(_) => FAILED,
        }
    }

    /// Whether the agent has sent results, where files travel.
    pub(crate) fn has_results(&self) -> bool {
        match self {
            Ending::Reported(report) => !matches!(report.outcome, Outcome::Failed { .. }),
            Ending::Unreturned(_) => true,
            _ => false,
        }
    }

    /// How it ended when results are missing. A job that failed for another reason keeps that.
    pub(crate) fn without_results(self, reason: String) -> Self {
        if self.has_results() {
            return Ending::Unreturned(reason);
        }
        crate::failure::warn(&format!("not all of the job's results came back: {reason}"));
        self
    }

    /// How it ended when there were to be results and none came.
    pub(crate) fn without_any_results(self) -> Self {
        if matches!(
            self,
            Ending::Stopped(_) | Ending::TimedOut | Ending::Lost(_)
        ) {
            crate::failure::warn("the machine ended before the job's results came back");
        }
        self
    }

    /// The error to be shown, unless the command itself has said all that there is to say.
    pub(crate) fn error(&self) -> Option<anyhow::Error> {
        match self {
            Ending::Reported(report) => match &report.outcome {
                Outcome::Exited { .. } | Outcome::Signalled { .. } => None,
                Outcome::TimedOut => Some(anyhow::anyhow!("the job reached its time limit")),
                Outcome::NotFound { reason } | Outcome::NotExecutable { reason } => {
                    Some(anyhow::anyhow!("{}", printable(reason.as_bytes())))
                }
                Outcome::Failed { step, reason } => Some(failed(step, reason)),
            },
            Ending::Stopped(_) => None,
            Ending::TooLate => Some(crate::failure::hinted(
                "the time limit was reached before the command was started",
                "the time that the boot takes counts, see 'apppot run -v'; pass a longer --time-limit",
            )),
            Ending::Unsent => Some(anyhow::anyhow!("the job's files could not be sent")),
            Ending::Unreturned(reason) => {
                Some(anyhow::anyhow!("{reason}").context("not all of the job's results came back"))
            }
            Ending::TimedOut => Some(anyhow::anyhow!("the job reached its time limit")),
            Ending::Lost(lost) => {
                let mut error = anyhow::anyhow!("{}", lost.reason);
                if !lost.console.is_empty() {
                    let console = lost.console.join("\n  ");
                    error =
                        anyhow::anyhow!("{}; its console's last lines:\n  {console}", lost.reason);
                }
                Some(error.context(lost.what))
            }
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match self {
            Ending::Reported(report) => json!(report),
            Ending::Stopped(signal) => json!({ "outcome": "stopped", "signal": signal }),
            Ending::TooLate | Ending::TimedOut => json!({ "outcome": "timed-out" }),
            Ending::Unsent => json!({ "outcome": "unsent" }),
            Ending::Unreturned(reason) => json!({ "outcome": "unreturned", "reason": reason }),
            Ending::Lost(lost) => json!({
                "outcome": "lost", "what": lost.what, "reason": lost.reason, "console": lost.console,
            }),
        }
    }
}

/// Everything about a run, for `--report` and `--json`.
pub(crate) fn report(
    id: &str,
    facts: &impl serde::Serialize,
    ending: &Ending,
    boot: Option<Duration>,
    total: Duration,
) -> serde_json::Value {
    json!({
        "id": id,
        "version": env!("CARGO_PKG_VERSION"),
        "exit-status": ending.exit_status(),
        "job": ending.to_json(),
        "machine": facts,
        "boot-ms": boot.map(|boot| boot.as_secs_f64() * 1e3),
        "total-ms": total.as_secs_f64() * 1e3,
    })
}

/// Checks before the job that its report can be written.
pub(crate) fn check_report(path: &Path) -> Result<()> {
    use nix::unistd::{access, AccessFlags};
    let failed = || format!("the report cannot be written to '{}'", path.display());
    if path.is_dir() {
        return Err(anyhow::anyhow!("it is a directory")).with_context(failed);
    }
    let place = match path.exists() && !path.is_file() {
        true => path,
        false => directory_of(path),
    };
    access(place, AccessFlags::W_OK).with_context(failed)
}

/// Writes the report under a temporary name first: a half-written one is never seen. The name is a
/// new one that nobody can guess, for the job may write in the same directory.
pub(crate) fn write_report(path: &Path, report: &serde_json::Value) -> Result<()> {
    let failed = || format!("cannot write the report to '{}'", path.display());
    if path.exists() && !path.is_file() {
        // Such as /dev/stderr.
        let text = format!("{report}\n");
        return crate::files::write_special(path, text.as_bytes()).with_context(failed);
    }
    let mut file = tempfile::Builder::new()
        .prefix(".apppot-report-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(directory_of(path))
        .with_context(failed)?;
    std::io::Write::write_all(&mut file, format!("{report:#}\n").as_bytes())
        .with_context(failed)?;
    file.persist(path)
        .map(drop)
        .map_err(|error| error.error)
        .with_context(failed)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Text from the guest with everything taken out that a terminal might obey.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let keep = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(outcome: Outcome) -> Ending {
        Ending::Reported(Report::of(outcome))
    }

    #[test]
    fn exit_statuses() {
        let reason = || String::from("x");
        for (ending, status) in [
            (reported(Outcome::Exited { status: 37 }), 37),
            (reported(Outcome::Signalled { signal: 9 }), 137),
            (reported(Outcome::TimedOut), 124),
            (reported(Outcome::NotFound { reason: reason() }), 127),
            (reported(Outcome::NotExecutable { reason: reason() }), 126),
            (
                reported(Outcome::Failed {
                    step: reason(),
                    reason: reason(),
                }),
                125,
            ),
            (Ending::Stopped(libc::SIGTERM), 143),
            (Ending::TooLate, 124),
            (Ending::TimedOut, 124),
            (Ending::Lost(Lost::machine(MachineEnd::PoweredOff)), 125),
            (Ending::Lost(Lost::machine(MachineEnd::Panicked)), 125),
        ] {
            assert_eq!(ending.exit_status(), status, "{ending:?}");
        }
    }

    #[test]
    fn a_hint_of_the_agent_s_is_one_of_the_launcher_s() {
        let error = failed("merging", "made for another base\nhint: use\x1b[2J another");
        assert_eq!(format!("{error:#}").matches("hint").count(), 0);
        let hint = crate::failure::hint(&error).unwrap();
        assert!(hint.starts_with("use"), "{hint}");
        assert!(!hint.contains('\x1b'), "{hint}");
    }

    #[test]
    fn what_the_command_said_itself_is_not_repeated() {
        assert!(reported(Outcome::Exited { status: 1 }).error().is_none());
        let mut lost = Lost::machine(MachineEnd::Panicked);
        lost.console = vec![String::from("Kernel panic - not syncing")];
        let error = format!("{:#}", Ending::Lost(lost).error().unwrap());
        assert!(error.contains("Kernel panic"), "{error}");
    }

    #[test]
    fn a_guests_text_cannot_command_the_terminal() {
        assert_eq!(printable(b"a\x1b[31mb\x07\xff\nc"), "a[31mb\u{fffd}\nc");
    }
}
