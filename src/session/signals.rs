//! Signals as a descriptor to be polled.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Those that reach the command, and the terminal's change of size.
const TAKEN: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGXCPU,
    Signal::SIGWINCH,
];

/// Those that are for the command alone, and wait until there is one. The others end the launcher then.
const FOR_THE_COMMAND: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGUSR2];

/// Whether a signal asks for the end, rather than tells the command something.
pub(crate) fn ends_the_job(signal: i32) -> bool {
    let others = FOR_THE_COMMAND.iter().chain(&[Signal::SIGWINCH]);
    !others.copied().any(|other| other as i32 == signal)
}

/// The launcher's signals.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Blocks the signals in this thread and those that it starts. From here on they end nothing by
    /// themselves, so it comes right before the machine is started.
    pub(crate) fn take() -> nix::Result<Self> {
        let set: SigSet = TAKEN
            .into_iter()
            .filter(|&signal| !is_ignored(signal))
            .collect();
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(|descriptor| Signals { descriptor })
    }

    /// Keeps those that are for the command from ending us, until [`Signals::take`] finds them.
    pub(crate) fn hold() -> nix::Result<()> {
        let held = FOR_THE_COMMAND.into_iter();
        let held = held.filter(|&signal| !is_ignored(signal));
        held.collect::<SigSet>().thread_block()
    }

    /// Lets them act by themselves again, also those that have come and that nobody has read.
    pub(crate) fn release() -> nix::Result<()> {
        TAKEN.into_iter().collect::<SigSet>().thread_unblock()
    }

    /// Lets those that ask for the end act by themselves again, also when they have come already: there is no
    /// machine that they could end.
    pub(crate) fn let_end() -> nix::Result<()> {
        let ending = TAKEN.into_iter().filter(|&it| ends_the_job(it as i32));
        ending.collect::<SigSet>().thread_unblock()
    }

    /// The number of the next signal that has come.
    pub(crate) fn next(&mut self) -> Option<i32> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo).ok()
    }
}

/// What the caller has us ignore (nohup, a shell's background jobs) stays ignored.
fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction with a null action only reads, into a value that lives here.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        signal != Signal::SIGWINCH
            && libc::sigaction(signal as libc::c_int, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
