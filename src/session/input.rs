//! Our standard input on its way to the command.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use apppot_contract::link::Frame;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::feed::Feed;

/// Bytes read at once.
const CHUNK: usize = 512 << 10;

/// Reads standard input to its end, as far as the guest takes it, or to the `failure` of doing so.
pub(super) fn pass_on(mut feed: Feed, failure: &OnceLock<String>) {
    // A terminal that hangs up has ended, whatever read(2) calls that.
    let is_terminal = io::stdin().is_terminal();
    let mut buffer = vec![0; CHUNK];
    loop {
        let most = feed.space().min(buffer.len());
        let passed = match read(io::stdin().as_fd(), &mut buffer[..most]) {
            Ok(0) => break,
            // The command's own input just ends; the launcher says that it was not whole.
            Err(errno) => {
                if !is_terminal {
                    let _ = failure.set(io::Error::from(errno).to_string());
                }
                break;
            }
            Ok(len) => feed.pass_on(&buffer[..len]),
        };
        if let Err(error) = passed {
            crate::failure::warn(&format!("cannot pass on standard input: {error}"));
        }
    }
    feed.sender().send(&Frame::StdinEof);
}

/// read(2), unbuffered: what the command does not need stays with the caller as far as possible.
fn read(input: BorrowedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    loop {
        match nix::unistd::read(input, buffer) {
            Err(nix::Error::EINTR) => {}
            // Somebody has made it non-blocking.
            Err(nix::Error::EAGAIN) => {
                let _ = poll(
                    &mut [PollFd::new(input, PollFlags::POLLIN)],
                    PollTimeout::NONE,
                );
            }
            result => return result,
        }
    }
}
