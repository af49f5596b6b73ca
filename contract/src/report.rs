//! How the job ended, as the agent saw it.

use std::time::Duration;

use crate::token::{Error, Token, Writer};

/// How the workload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "outcome", rename_all = "kebab-case"))]
pub enum Outcome {
    /// It exited by itself.
    Exited {
        /// Exit status, 0 to 255.
        status: u8,
    },
    /// A signal ended it.
    Signalled {
        /// The signal's number in the guest.
        signal: u8,
    },
    /// The deadline passed and the agent ended it.
    TimedOut,
    /// There is no such command.
    NotFound {
        /// The command and the reason.
        reason: String,
    },
    /// The command exists and cannot be executed.
    NotExecutable {
        /// The command and the reason.
        reason: String,
    },
    /// The agent could not start the job.
    Failed {
        /// The step that failed, such as `mounting the root filesystem`.
        step: String,
        /// Why.
        reason: String,
    },
}

/// What the job used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Usage {
    /// From the start of the command to its end.
    pub elapsed: Duration,
    /// CPU time in user mode, of the command and its waited-for descendants.
    pub user: Duration,
    /// CPU time in the guest's kernel.
    pub system: Duration,
    /// Largest resident set of one process, KiB.
    pub max_rss_kib: u64,
}

/// The agent's last words: a document of tokens under the first line `#apppot-report/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Report {
    /// How the workload ended.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
}

const FIRST_LINE: &[u8] = b"#apppot-report/1";

impl Report {
    /// Writes the report as a document.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match &self.outcome {
            Outcome::Exited { status } => {
                out.add("outcome", "exited");
                out.add("status", status.to_string());
            }
            Outcome::Signalled { signal } => {
                out.add("outcome", "signalled");
                out.add("signal", signal.to_string());
            }
            Outcome::TimedOut => out.add("outcome", "timed-out"),
            Outcome::NotFound { reason } => {
                out.add("outcome", "not-found");
                out.add("reason", reason);
            }
            Outcome::NotExecutable { reason } => {
                out.add("outcome", "not-executable");
                out.add("reason", reason);
            }
            Outcome::Failed { step, reason } => {
                out.add("outcome", "failed");
                out.add("step", step);
                out.add("reason", reason);
            }
        }
        let Usage {
            elapsed,
            user,
            system,
            max_rss_kib,
        } = self.usage;
        for (key, time) in [
            ("elapsed-us", elapsed),
            ("user-us", user),
            ("system-us", system),
        ] {
            out.add(key, time.as_micros().to_string());
        }
        out.add("max-rss-kib", max_rss_kib.to_string());
        let mut text = FIRST_LINE.to_vec();
        for token in out.finish() {
            text.push(b'\n');
            text.extend(token.bytes());
        }
        text.push(b'\n');
        text
    }

    /// Reads what [`Report::encode`] wrote. It comes from the guest and is not trusted.
    ///
    /// # Errors
    /// No report, or a token that does not belong into one; the error names it.
    pub fn decode(text: &[u8]) -> Result<Self, Error> {
        let mut lines = text.split(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        if first != FIRST_LINE {
            return Err(Error::new(first, "is not the first line of a report"));
        }
        let mut fields = Fields::default();
        for line in lines.filter(|line| !line.is_empty()) {
            let token =
                Token::parse(line)?.ok_or_else(|| Error::new(line, "has no place in a report"))?;
            fields.take(&token)?;
        }
        fields.finish()
    }
}

/// The tokens of a report, each at most once.
#[derive(Default)]
struct Fields {
    outcome: Option<String>,
    number: Option<u8>,
    step: Option<String>,
    reason: Option<String>,
    usage: Usage,
}

impl Fields {
    fn take(&mut self, token: &Token) -> Result<(), Error> {
        match token.key {
            "outcome" => set(token, &mut self.outcome, text(token)?),
            "status" | "signal" => set(token, &mut self.number, number(token)?),
            "step" => set(token, &mut self.step, text(token)?),
            "reason" => set(token, &mut self.reason, text(token)?),
            "elapsed-us" => micros(token, &mut self.usage.elapsed),
            "user-us" => micros(token, &mut self.usage.user),
            "system-us" => micros(token, &mut self.usage.system),
            "max-rss-kib" => {
                self.usage.max_rss_kib = number(token)?;
                Ok(())
            }
            _ => Err(token.error("has no place in a report")),
        }
    }

    fn finish(self) -> Result<Report, Error> {
        let missing = |what: &str| Error::new(b"apppot.outcome", &format!("needs apppot.{what}"));
        let reason = || self.reason.clone().ok_or_else(|| missing("reason"));
        let outcome = match self.outcome.as_deref() {
            Some("exited") => Outcome::Exited {
                status: self.number.ok_or_else(|| missing("status"))?,
            },
            Some("signalled") => Outcome::Signalled {
                signal: self.number.ok_or_else(|| missing("signal"))?,
            },
            Some("timed-out") => Outcome::TimedOut,
            Some("not-found") => Outcome::NotFound { reason: reason()? },
            Some("not-executable") => Outcome::NotExecutable { reason: reason()? },
            Some("failed") => Outcome::Failed {
                step: self.step.clone().ok_or_else(|| missing("step"))?,
                reason: reason()?,
            },
            Some(other) => return Err(Error::new(other.as_bytes(), "is an unknown outcome")),
            None => return Err(Error::new(b"apppot.outcome", "is missing")),
        };
        Ok(Report {
            outcome,
            usage: self.usage,
        })
    }
}

fn set<T>(token: &Token, slot: &mut Option<T>, value: T) -> Result<(), Error> {
    if slot.replace(value).is_some() {
        return Err(token.error("repeats a key"));
    }
    Ok(())
}

fn text(token: &Token) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&token.bytes()?).into_owned())
}

fn number<T: std::str::FromStr>(token: &Token) -> Result<T, Error> {
    token
        .value
        .parse()
        .map_err(|_| token.error("is no number, or one that is too large"))
}

fn micros(token: &Token, slot: &mut Duration) -> Result<(), Error> {
    *slot = Duration::from_micros(number(token)?);
    Ok(())
}
