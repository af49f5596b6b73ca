//! Waiting for a daemon, but not for ever: one that hangs answers nothing, and libvirt's library waits for it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How often it is looked whether waiting goes on.
const STEP: Duration = Duration::from_millis(100);

/// Does something in a thread of its own, and waits until it is done, `limit` is over, or `is_wanted` no more;
/// `None` in the latter cases, and the thread goes on by itself then. Else it has ended when this returns.
///
/// # Errors
/// There is no thread.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    is_wanted: impl Fn() -> bool,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new().name(String::from("libvirt call"));
    let acting = thread.spawn(move || {
        // Nobody may wait any more.
        let _ = tell.send(act());
    });
    let acting = acting.map_err(Error::system("start a thread that asks libvirt"))?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match told.recv_timeout(left.min(STEP)) {
            Ok(result) => {
                let _ = acting.join();
                return Ok(Some(result));
            }
            Err(RecvTimeoutError::Timeout) if !left.is_zero() && is_wanted() => {}
            Err(_) => return Ok(None),
        }
    }
}

/// Whether a signal that asks for the end is held back: the launcher takes those itself when the machine runs.
pub(super) fn is_asked_to_end() -> bool {
    // SAFETY: the set is live and of the right size; the signals exist.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&mut pending) == 0
            && [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT]
                .iter()
                .any(|&signal| libc::sigismember(&pending, signal) == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_in_time_counts() {
        let done = within(Duration::from_secs(30), || true, || 7);
        assert_eq!(done.unwrap(), Some(7));
    }

    #[test]
    fn what_hangs_is_left_alone() {
        let (_keep, never) = mpsc::channel::<()>();
        let hang = move || never.recv();
        let done = within(Duration::from_millis(50), || true, hang);
        assert!(done.unwrap().is_none());
    }

    #[test]
    fn what_is_not_wanted_any_more_is_left_alone() {
        let (_keep, never) = mpsc::channel::<()>();
        let hang = move || never.recv();
        let done = within(Duration::from_secs(600), || false, hang);
        assert!(done.unwrap().is_none());
    }
}
