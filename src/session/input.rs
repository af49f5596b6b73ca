//! Our standard input on its way to the command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use apppot_backends::Ring;
use apppot_contract::link::{Frame, MAX_PAYLOAD, WINDOW};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::sender::Sender;

/// Bytes read at once when they go into the ring.
const CHUNK: usize = 512 << 10;

/// The thread that reads standard input, as far as the guest takes it.
#[derive(Debug)]
pub(crate) struct Source {
    credit: Arc<Credit>,
}

/// Bytes that the guest has returned and the reader has not yet heard of: a sum, so that a guest
/// that says it often makes nothing grow.
#[derive(Debug, Default)]
struct Credit {
    bytes: Mutex<u64>,
    returned: Condvar,
}

impl Source {
    /// Starts reading; into `ring` when there is one, else into frames.
    pub(crate) fn start(sender: Sender, ring: Option<Ring>) -> io::Result<Self> {
        let credit = Arc::new(Credit::default());
        let credits = Arc::clone(&credit);
        let way = ring.map_or(Way::Frames { under_way: 0 }, Way::Ring);
        let mut reader = Reader {
            sender,
            credits,
            way,
        };
        std::thread::Builder::new()
            .name(String::from("stdin"))
            .spawn(move || reader.run())?;
        Ok(Source { credit })
    }

    /// The guest has consumed `bytes`.
    pub(crate) fn credit(&self, bytes: u32) {
        let mut sum = self
            .credit
            .bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *sum = sum.saturating_add(bytes.into());
        self.credit.returned.notify_one();
    }
}

enum Way {
    Frames {
        /// Sent and not yet consumed.
        under_way: usize,
    },
    Ring(Ring),
}

struct Reader {
    sender: Sender,
    credits: Arc<Credit>,
    way: Way,
}

impl Reader {
    fn run(&mut self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let space = self.space();
            let most = space.min(buffer.len());
            match read(io::stdin().as_fd(), &mut buffer[..most]) {
                // An input that cannot be read has ended, as programs see it.
                Ok(0) | Err(_) => break,
                Ok(len) => self.pass_on(&buffer[..len]),
            }
        }
        self.sender.send(&Frame::StdinEof);
    }

    /// Waits until something can be sent: how much.
    fn space(&mut self) -> usize {
        let credits = Arc::clone(&self.credits);
        let mut sum = credits.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let returned = std::mem::take(&mut *sum);
            // A guest cannot return more than it was given.
            let space = match &mut self.way {
                Way::Frames { under_way } => {
                    *under_way -=
                        usize::try_from(returned).map_or(*under_way, |bytes| bytes.min(*under_way));
                    (WINDOW - *under_way).min(MAX_PAYLOAD)
                }
                Way::Ring(ring) => {
                    ring.credit(returned);
                    ring.space()
                }
            };
            if space > 0 {
                return space;
            }
            sum = credits
                .returned
                .wait(sum)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        match &mut self.way {
            Way::Frames { under_way } => {
                *under_way += bytes.len();
                self.sender.send(&Frame::Stdin(bytes));
            }
            Way::Ring(ring) => match ring.put(bytes) {
                Ok(total) => self.sender.send(&Frame::StdinRing(total)),
                Err(error) => {
                    crate::failure::warn(&format!("cannot pass on standard input: {error}"))
                }
            },
        }
    }
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
