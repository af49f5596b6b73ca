//! Streams to the agent, as far as it takes them.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use apppot_contract::link::{Frame, Stream, MAX_PAYLOAD, WINDOW};

use crate::link::Sender;
use crate::shared::lock;

/// What the agent has returned of a stream.
#[derive(Clone, Default)]
pub(crate) struct Returns(Arc<(Mutex<u64>, Condvar)>);

impl Returns {
    /// The agent has consumed `bytes`.
    pub(crate) fn credit(&self, bytes: u32) {
        let (sum, returned) = &*self.0;
        let mut sum = lock(sum);
        *sum = sum.saturating_add(bytes.into());
        returned.notify_one();
    }

    /// Waits until something has come back.
    fn wait(&self) -> usize {
        let (sum, returned) = &*self.0;
        let mut sum = lock(sum);
        while *sum == 0 {
            sum = returned.wait(sum).unwrap_or_else(PoisonError::into_inner);
        }
        usize::try_from(std::mem::take(&mut *sum)).unwrap_or(usize::MAX)
    }
}

/// Sends what `source` has, to its end.
///
/// # Errors
/// The source's.
pub(crate) fn feed(
    mut source: impl Read,
    stream: Stream,
    sender: &Sender,
    returns: &Returns,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut under_way = 0;
    loop {
        while under_way >= WINDOW {
            under_way -= returns.wait().min(under_way);
        }
        let most = buffer.len().min(WINDOW - under_way);
        match source.read(&mut buffer[..most]) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                under_way += len;
                sender.send(&match stream {
                    Stream::Files => Frame::Files(&buffer[..len]),
                    _ => Frame::Stdin(&buffer[..len]),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
