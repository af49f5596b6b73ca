//! Bytes on their way to the guest, in frames or through a ring, as far as the guest takes them.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use apppot_backends::Ring;
use apppot_contract::link::{Frame, Stream, MAX_PAYLOAD, WINDOW};

use super::sender::Sender;

/// What the guest has returned of a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Returns {
    credit: Arc<Credit>,
}

/// Bytes that the guest has returned and the sender has not yet heard of: a sum, so that a guest
/// that says it often makes nothing grow.
#[derive(Debug, Default)]
struct Credit {
    bytes: Mutex<u64>,
    returned: Condvar,
}

impl Returns {
    /// The guest has consumed `bytes`.
    pub(crate) fn credit(&self, bytes: u32) {
        let sum = self.credit.bytes.lock();
        let mut sum = sum.unwrap_or_else(PoisonError::into_inner);
        *sum = sum.saturating_add(bytes.into());
        self.credit.returned.notify_one();
    }
}

/// A stream to the guest.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: Sender,
    stream: Stream,
    returns: Returns,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Frames {
        /// Sent and not yet consumed.
        under_way: usize,
    },
    Ring(Ring),
}

impl Feed {
    /// A feed of standard input or of files; through `ring` when there is one, else in frames.
    pub(crate) fn new(sender: Sender, stream: Stream, ring: Option<Ring>) -> Self {
        Feed {
            sender,
            stream,
            returns: Returns::default(),
            way: ring.map_or(Way::Frames { under_way: 0 }, Way::Ring),
        }
    }

    /// Where the guest's credit goes.
    pub(crate) fn returns(&self) -> Returns {
        self.returns.clone()
    }

    /// Where the frames go.
    pub(crate) fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Waits until something can be sent: how much.
    pub(crate) fn space(&mut self) -> usize {
        let credit = Arc::clone(&self.returns.credit);
        let mut sum = credit.bytes.lock().unwrap_or_else(PoisonError::into_inner);
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
            let waited = credit.returned.wait(sum);
            sum = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends bytes for which there is space.
    pub(crate) fn pass_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_files = self.stream == Stream::Files;
        match &mut self.way {
            Way::Frames { under_way } => {
                *under_way += bytes.len();
                self.sender.send(&match is_files {
                    true => Frame::Files(bytes),
                    false => Frame::Stdin(bytes),
                });
            }
            Way::Ring(ring) => {
                let total = ring.put(bytes)?;
                self.sender.send(&match is_files {
                    true => Frame::FilesRing(total),
                    false => Frame::StdinRing(total),
                });
            }
        }
        Ok(())
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.space().min(bytes.len());
        self.pass_on(&bytes[..len])?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
