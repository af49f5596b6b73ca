//! The caller's terminal: whether there is one, its size, raw mode and the way back.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};

use apppot_backends::process::{self, AtEnd};
use nix::sys::termios::{self, SetArg, Termios};

/// Whether standard input and output are a terminal, in which this process is in the foreground.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal() && is_foreground()
}

/// A process in the background must not touch its terminal: it would be stopped.
pub(crate) fn is_foreground() -> bool {
    let group = nix::unistd::getpgrp();
    nix::unistd::tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == group)
}

/// Rows and columns.
pub(crate) fn size() -> Option<(u16, u16)> {
    // SAFETY: an all-zero winsize is valid, and TIOCGWINSZ fills one in.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        [io::stdout().as_raw_fd(), io::stdin().as_raw_fd()]
            .into_iter()
            .find(|&fd| libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) == 0)
            .map(|_| (size.ws_row, size.ws_col))
    }
}

/// Sees to it that the terminal's settings come back however the launcher ends. Must be made
/// while there is one thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    _at_end: AtEnd,
}

impl Keeper {
    /// Remembers the settings; `None` when standard input is no terminal.
    pub(crate) fn start() -> io::Result<Option<Self>> {
        let Ok(settings) = termios::tcgetattr(io::stdin()) else {
            return Ok(None);
        };
        let restore = move || restore(&settings);
        process::at_end(restore).map(|at_end| Some(Keeper { _at_end: at_end }))
    }
}

/// Raw mode, until it is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode: every key is the command's.
    pub(crate) fn enter() -> Option<Self> {
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &raw).ok()?;
        Some(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(settings: &Termios) {
    let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, settings);
}
