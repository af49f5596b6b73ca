//! The object with signals for the job, which its launcher writes.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apppot_contract::store::{MAX_CONTROL, REFRESH};
use apppot_contract::Url;

use crate::shared::Shared;
use crate::store::Store;

/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest number of a signal of Linux.
const MAX_SIGNAL: u8 = 64;

/// Looks at it as long as the machine lives. That there is none, or that the store is away, means nothing.
pub(crate) fn watch(store: &Arc<dyn Store>, url: &Url, shared: &Shared) {
    let mut seen = 0;
    loop {
        if let Ok(object) = store.get(url, 0, Instant::now() + PATIENCE) {
            let mut text = Vec::new();
            // One that was cut off is read again.
            let read = object.body.take(MAX_CONTROL as u64).read_to_end(&mut text);
            if read.is_ok() {
                let found = signals(&text);
                for number in found.iter().skip(seen).flatten() {
                    shared.signal(*number);
                }
                seen = seen.max(found.len());
            }
        }
        std::thread::sleep(REFRESH);
    }
}

/// The numbers in whole lines; `None` for a line that is none.
fn signals(text: &[u8]) -> Vec<Option<u8>> {
    let whole = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    let lines = text[..whole].split(|&byte| byte == b'\n');
    let number = |line: &[u8]| {
        let text = std::str::from_utf8(line).ok()?;
        let number = text.trim_end().parse().ok()?;
        (1..=MAX_SIGNAL).contains(&number).then_some(number)
    };
    match whole {
        0 => Vec::new(),
        _ => lines.map(number).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_whole_line_is_a_signal() {
        assert_eq!(signals(b""), []);
        assert_eq!(signals(b"\n"), []);
        assert_eq!(signals(b"15"), []);
        assert_eq!(signals(b"15\n"), [Some(15)]);
        assert_eq!(signals(b"15\n2\n6"), [Some(15), Some(2)]);
        assert_eq!(
            signals(b"0\n65\nTERM\n-1\n64\n\n9\n"),
            [None, None, None, None, Some(64), None, Some(9)]
        );
    }
}
