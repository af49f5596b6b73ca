//! QEMU's monitor (`docs/interop/qmp-spec.rst`): JSON, a line each.
//!
//! Two things are wanted of it: why the machine has ended, and that it does not stop without ending.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::process::kill_process;

/// The longest line that is read, bytes.
const LONGEST: u64 = 64 << 10;

/// What the monitor says of the machine's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The guest powered off.
    PoweredOff,
    /// The guest's processor was reset: by a panic, which ends like this, or by a reboot.
    Reset,
    /// It can go no further, for reasons of QEMU's or the host's.
    Stopped,
}

/// A thread that listens to the monitor until that is closed.
#[derive(Debug)]
pub(super) struct Monitor {
    said: Arc<Mutex<Option<Said>>>,
    listener: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Listens on `stream`. `process` is QEMU's; it is killed when the machine stops for good, for
    /// else nobody would notice.
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn start(mut stream: UnixStream, process: OwnedFd) -> std::io::Result<Self> {
        // Events come once this has been said; QEMU reads it when it is up. One that has ended already says
        // why on the console.
        let _ = stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n");
        let said = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&said);
        let listener = std::thread::Builder::new()
            .name(String::from("monitor"))
            .spawn(move || {
                listen(BufReader::new(stream), |what| {
                    shared
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(what);
                    if what == Said::Stopped {
                        kill_process(process.as_fd());
                    }
                });
            })?;
        Ok(Monitor {
            said,
            listener: Some(listener),
        })
    }

    /// What it has said by the machine's end. To be asked when the process has ended.
    pub(super) fn last_words(&mut self) -> Option<Said> {
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads lines until the end, and reports what is of interest in them.
fn listen(mut lines: impl BufRead, mut report: impl FnMut(Said)) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => understand(&line).map(&mut report),
        };
    }
}

/// What a line says; `None` when it is of no interest.
fn understand(line: &[u8]) -> Option<Said> {
    let message: Value = serde_json::from_slice(line).ok()?;
    match message.get("event")?.as_str()? {
        "SHUTDOWN" => match message.get("data")?.get("reason")?.as_str()? {
            "guest-shutdown" => Some(Said::PoweredOff),
            "guest-reset" | "guest-panic" => Some(Said::Reset),
            _ => None,
        },
        "STOP" => Some(Said::Stopped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_of_interest() {
        let text = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}
{"return": {}}
{"timestamp": {"seconds": 1}, "event": "RTC_CHANGE", "data": {"offset": 0}}
not json
{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}
{"event": "SHUTDOWN"}
{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}
{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}
{"event": "STOP"}
"#;
        let mut said = Vec::new();
        listen(&text[..], |what| said.push(what));
        assert_eq!(said, [Said::Reset, Said::PoweredOff, Said::Stopped]);
    }

    #[test]
    fn endless_lines_are_cut() {
        let endless = std::io::repeat(b'x').take(10 * LONGEST);
        listen(BufReader::new(endless), |what| panic!("{what:?}"));
    }
}
