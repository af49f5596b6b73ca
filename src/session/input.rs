//! Our standard input on its way to the command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use apppot_contract::link::Frame;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::feed::Feed;

/// Bytes read at once.
const CHUNK: usize = 512 << 10;

/// Reads standard input to its end, as far as the guest takes it.
pub(super) fn pass_on(mut feed: Feed) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let most = feed.space().min(buffer.len());
        let passed = match read(io::stdin().as_fd(), &mut buffer[..most]) {
            // An input that cannot be read has ended, as programs see it.
            Ok(0) | Err(_) => break,
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
