//! How far something is that takes longer than a moment.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Nothing is said of what takes less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A line on standard error: one that changes on a terminal, else one now and then.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    next: Instant,
    is_shown: bool,
    is_terminal: bool,
    has_spoken: bool,
}

impl Progress {
    /// Begins something of `total` bytes; 0 when that is not known.
    pub(crate) fn start(what: &'static str, total: u64, is_shown: bool) -> Self {
        Progress {
            what,
            total,
            done: 0,
            next: Instant::now() + PATIENCE,
            is_shown,
            is_terminal: std::io::stderr().is_terminal(),
            has_spoken: false,
        }
    }

    /// It is of so many bytes.
    pub(crate) fn of(&mut self, total: u64) {
        self.total = total;
    }

    /// So many bytes more are done.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let now = Instant::now();
        if self.is_shown && now >= self.next {
            self.next = now + Duration::from_millis(if self.is_terminal { 200 } else { 10_000 });
            self.has_spoken = true;
            let text = text(self.what, self.done, self.total);
            // In raw mode a terminal's line feed is one, and no more.
            let _ = match self.is_terminal {
                true => write!(std::io::stderr(), "\r\x1b[K{text}"),
                false => writeln!(std::io::stderr(), "{text}"),
            };
        }
    }

    /// It is done, or has failed.
    pub(crate) fn end(&self) {
        if self.has_spoken && self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(what: &str, done: u64, total: u64) -> String {
    let mib = |bytes: u64| bytes >> 20;
    match total {
        0 => format!("{what}: {} MiB", mib(done)),
        _ => format!(
            "{what}: {} of {} MiB ({} %)",
            mib(done),
            mib(total),
            u128::from(done) * 100 / u128::from(total)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn progress_in_words() {
        assert_eq!(text("going", 3 << 20, 4 << 20), "going: 3 of 4 MiB (75 %)");
        assert_eq!(text("going", 3 << 20, 0), "going: 3 MiB");
    }
}
