//! The end of a machine in a cloud, whatever happens: a process of its own, which waits for nothing but time.
//! Elsewhere the launcher ends a machine that hangs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe2;

use crate::shutdown;

/// How often the clock is looked at, which may be set while the machine runs.
const LOOK: Duration = Duration::from_secs(20);
/// How long the system may take to end once the agent has, bytes on their way to disks included.
const LAST: Duration = Duration::from_secs(180);
/// How long writing those back may take when time is over.
const SYNC: Duration = Duration::from_secs(10);

/// Keeps the watchdog waiting. When it goes, and with it the agent, the machine has [`LAST`] left.
pub(crate) struct Leash {
    _end: OwnedFd,
}

/// Ends the machine at `end`, or some time after the agent has ended.
///
/// # Errors
/// There can be no further process.
pub(crate) fn start(end: SystemTime) -> io::Result<Leash> {
    watch(end, LAST, || {
        eprintln!("apppot-init: the time for this machine is over: power off");
        sync();
        shutdown::power_off();
    })
}

fn watch(end: SystemTime, last: Duration, fire: impl FnOnce()) -> io::Result<Leash> {
    let (leash, held) = pipe2(OFlag::O_CLOEXEC)?;
    let left = end.duration_since(SystemTime::now()).unwrap_or_default();
    // Longer than any machine lives.
    let ticking = Instant::now() + left.min(Duration::from_secs(10 * 365 * 86_400));
    // SAFETY: the agent has one thread, so its memory is in order in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(held);
            settle();
            wait(&leash, end, ticking, last);
            fire();
            // SAFETY: nothing of the agent's is to be run at the exit.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(Leash { _end: held }),
    }
}

/// Memory may become scarce, and the service's processes may be asked to end: this one stays.
fn settle() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = nix::unistd::setsid();
}

/// Waits until `end`, by the clock that may be set and by the one that may not; or until the agent has
/// ended and `last` has passed.
fn wait(leash: &OwnedFd, end: SystemTime, ticking: Instant, last: Duration) {
    loop {
        let by_clock = end.duration_since(SystemTime::now()).unwrap_or_default();
        let left = ticking
            .saturating_duration_since(Instant::now())
            .min(by_clock);
        if left.is_zero() {
            return;
        }
        let timeout = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(leash.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout).is_ok_and(|count| count > 0) {
            std::thread::sleep(last.min(left));
            return;
        }
    }
}

/// Has everything written to disks, for as long as that may take: they may hang, too.
fn sync() {
    // SAFETY: as in `watch`; the child makes one system call.
    match unsafe { libc::fork() } {
        0 => {
            nix::unistd::sync();
            // SAFETY: as in `watch`.
            unsafe { libc::_exit(0) }
        }
        -1 => {}
        child => {
            let end = Instant::now() + SYNC;
            // SAFETY: waitpid may be told that the status is not wanted.
            while unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) } == 0
                && Instant::now() < end
            {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When it fires: whether at all within the test's patience, and after how long.
    fn fires(end: SystemTime, last: Duration, keep: bool) -> Duration {
        let (fired, signal) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let begun = Instant::now();
        let leash = watch(end, last, || {
            let _ = nix::unistd::write(&signal, b"x");
        })
        .unwrap();
        drop(signal);
        let leash = Some(leash).filter(|_| keep);
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&fired, &mut byte), Ok(1));
        drop(leash);
        begun.elapsed()
    }

    #[test]
    fn it_fires_when_time_is_over() {
        let soon = SystemTime::now() + Duration::from_millis(300);
        let after = fires(soon, Duration::from_secs(3600), true);
        assert!(after >= Duration::from_millis(250), "{after:?}");
        fires(SystemTime::UNIX_EPOCH, Duration::from_secs(3600), true);
    }

    #[test]
    fn it_fires_some_time_after_the_agent_has_gone() {
        let late = SystemTime::now() + Duration::from_secs(3600);
        let after = fires(late, Duration::from_millis(300), false);
        assert!(after >= Duration::from_millis(250), "{after:?}");
    }
}
