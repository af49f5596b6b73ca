//! How the job ended, as the agent saw it.

use std::time::Duration;

use crate::link;
use crate::token::{number, Error, Token, Writer};

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
        /// The signal's number in the guest, 1 to 127.
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
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub struct Usage {
    /// From the start of the command to its end.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "elapsed-ms", serialize_with = "millis")
    )]
    pub elapsed: Duration,
    /// CPU time in user mode, of the command and its waited-for descendants.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "user-ms", serialize_with = "millis")
    )]
    pub user: Duration,
    /// CPU time in the guest's kernel.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "system-ms", serialize_with = "millis")
    )]
    pub system: Duration,
    /// Largest resident set of one process, KiB.
    pub max_rss_kib: u64,
}

/// Durations are milliseconds in JSON.
#[cfg(feature = "serde")]
fn millis<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1e3)
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
    /// What else there is to say, for people: warnings, and why the job was asked to end.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub notes: Vec<String>,
}

const MAGIC: &[u8] = b"#apppot-report/";
const VERSION: &[u8] = b"1";

/// The longest text that a report carries, bytes. Escaped, two of them fit into a frame of the link, with the
/// notes.
const MAX_TEXT: usize = 8 << 10;
/// The most notes that a report carries.
const MAX_NOTES: usize = 16;
/// The longest of them, bytes.
const MAX_NOTE: usize = 256;

impl Report {
    /// A report without usage and notes.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        Report {
            outcome,
            usage: Usage::default(),
            notes: Vec::new(),
        }
    }

    /// Writes the report as a document. It fits into one frame of the link: long texts are cut off.
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
                out.add("reason", shortened(reason, MAX_TEXT));
            }
            Outcome::NotExecutable { reason } => {
                out.add("outcome", "not-executable");
                out.add("reason", shortened(reason, MAX_TEXT));
            }
            Outcome::Failed { step, reason } => {
                out.add("outcome", "failed");
                out.add("step", shortened(step, MAX_TEXT));
                out.add("reason", shortened(reason, MAX_TEXT));
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
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            out.add(key, micros.to_string());
        }
        out.add("max-rss-kib", max_rss_kib.to_string());
        for note in self.notes.iter().take(MAX_NOTES) {
            out.add("note", shortened(note, MAX_NOTE));
        }
        let mut text = [MAGIC, VERSION].concat();
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
        read(text).map_err(Error::of_report)
    }
}

fn read(text: &[u8]) -> Result<Report, Error> {
    let mut lines = text.split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default();
    match first.strip_prefix(MAGIC) {
        Some(VERSION) => {}
        Some(_) => return Err(Error::new(first, "is another version than 1")),
        None => return Err(Error::new(first, "is not the first line of a report")),
    }
    if text.len() > link::MAX_PAYLOAD {
        let most = link::MAX_PAYLOAD;
        let what = format!(
            "is followed by too much: {} bytes, {most} is the most",
            text.len()
        );
        return Err(Error::new(first, &what));
    }
    let mut fields = Fields::default();
    for line in lines.filter(|line| !line.is_empty()) {
        let token =
            Token::parse(line)?.ok_or_else(|| Error::new(line, "has no place in a report"))?;
        fields.take(&token)?;
    }
    fields.finish()
}

/// The start of `text` that a report carries.
fn shortened(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The tokens of a report, each at most once.
#[derive(Default)]
struct Fields {
    outcome: Option<String>,
    status: Option<u8>,
    signal: Option<u8>,
    step: Option<String>,
    reason: Option<String>,
    elapsed: Option<u64>,
    user: Option<u64>,
    system: Option<u64>,
    max_rss: Option<u64>,
    notes: Vec<String>,
}

impl Fields {
    fn take(&mut self, token: &Token) -> Result<(), Error> {
        match token.key {
            "outcome" => set(token, &mut self.outcome, text(token)?),
            "status" => set(token, &mut self.status, number(token)?),
            "signal" => set(token, &mut self.signal, signal(token)?),
            "step" => set(token, &mut self.step, text(token)?),
            "reason" => set(token, &mut self.reason, text(token)?),
            "elapsed-us" => set(token, &mut self.elapsed, number(token)?),
            "user-us" => set(token, &mut self.user, number(token)?),
            "system-us" => set(token, &mut self.system, number(token)?),
            "max-rss-kib" => set(token, &mut self.max_rss, number(token)?),
            "note" if self.notes.len() == MAX_NOTES => Err(token.error("is one note too many")),
            "note" => {
                self.notes.push(text(token)?);
                Ok(())
            }
            _ => Err(token.error("has no place in a report")),
        }
    }

    fn finish(mut self) -> Result<Report, Error> {
        let outcome = self.outcome()?;
        let time = |micros: Option<u64>| Duration::from_micros(micros.unwrap_or_default());
        let usage = Usage {
            elapsed: time(self.elapsed),
            user: time(self.user),
            system: time(self.system),
            max_rss_kib: self.max_rss.unwrap_or_default(),
        };
        self.nothing_left()?;
        Ok(Report {
            outcome,
            usage,
            notes: self.notes,
        })
    }

    fn outcome(&mut self) -> Result<Outcome, Error> {
        let word = self
            .outcome
            .take()
            .ok_or_else(|| Error::new(b"apppot.outcome", "is missing"))?;
        let needs = |key: &str| {
            let token = format!("apppot.outcome={word}");
            Error::new(token.as_bytes(), &format!("needs apppot.{key}"))
        };
        Ok(match word.as_str() {
            "exited" => Outcome::Exited {
                status: self.status.take().ok_or_else(|| needs("status"))?,
            },
            "signalled" => Outcome::Signalled {
                signal: self.signal.take().ok_or_else(|| needs("signal"))?,
            },
            "timed-out" => Outcome::TimedOut,
            "not-found" => Outcome::NotFound {
                reason: self.reason.take().ok_or_else(|| needs("reason"))?,
            },
            "not-executable" => Outcome::NotExecutable {
                reason: self.reason.take().ok_or_else(|| needs("reason"))?,
            },
            "failed" => Outcome::Failed {
                step: self.step.take().ok_or_else(|| needs("step"))?,
                reason: self.reason.take().ok_or_else(|| needs("reason"))?,
            },
            other => {
                let token = format!("apppot.outcome={other}");
                return Err(Error::new(token.as_bytes(), "is an unknown outcome"));
            }
        })
    }

    /// Refuses tokens that the outcome has not taken.
    fn nothing_left(&self) -> Result<(), Error> {
        let left = [
            ("status", self.status.is_some()),
            ("signal", self.signal.is_some()),
            ("step", self.step.is_some()),
            ("reason", self.reason.is_some()),
        ];
        match left.into_iter().find(|&(_, there)| there) {
            None => Ok(()),
            Some((key, _)) => Err(Error::new(
                format!("apppot.{key}").as_bytes(),
                "does not go with the outcome",
            )),
        }
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

/// A signal that 128 can be added to.
fn signal(token: &Token) -> Result<u8, Error> {
    match number(token)? {
        number @ 1..=127 => Ok(number),
        _ => Err(token.error("is no signal")),
    }
}

#[cfg(test)]
mod tests;
