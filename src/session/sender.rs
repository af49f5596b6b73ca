//! Frames on their way to the agent, written by a thread of their own: whoever sends does not wait.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{mpsc, Arc, Condvar, Mutex, PoisonError};

use apppot_contract::link::Frame;

/// Where frames are sent to. Copies send to the same link.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Vec<u8>>,
    under_way: Arc<UnderWay>,
}

/// Bytes that the agent has not acknowledged, on a link that holds only so many.
#[derive(Debug)]
struct UnderWay {
    capacity: Option<usize>,
    bytes: Mutex<usize>,
    acknowledged: Condvar,
}

impl Sender {
    /// Starts the thread that writes to `stream`, which holds `capacity` bytes.
    pub(crate) fn start(mut stream: UnixStream, capacity: Option<usize>) -> io::Result<Self> {
        let (queue, frames) = mpsc::channel::<Vec<u8>>();
        let under_way = Arc::new(UnderWay {
            capacity,
            bytes: Mutex::new(0),
            acknowledged: Condvar::new(),
        });
        let room = Arc::clone(&under_way);
        std::thread::Builder::new()
            .name(String::from("link"))
            .spawn(move || {
                for frame in frames {
                    let mut rest = &frame[..];
                    while !rest.is_empty() {
                        let len = room.take(rest.len());
                        // The machine has ended: its end is noticed elsewhere.
                        if stream.write_all(&rest[..len]).is_err() {
                            return;
                        }
                        rest = &rest[len..];
                    }
                }
            })?;
        Ok(Sender { queue, under_way })
    }

    /// Sends `frame`, after those sent before.
    pub(crate) fn send(&self, frame: &Frame) {
        // Fails only when the thread has ended with the machine.
        let _ = self.queue.send(frame.to_vec());
    }

    /// The agent has read so many bytes.
    pub(crate) fn received(&self, bytes: u32) {
        let mut under_way = self
            .under_way
            .bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *under_way = under_way.saturating_sub(bytes as usize);
        self.under_way.acknowledged.notify_all();
    }
}

impl UnderWay {
    /// Waits for room and takes it: how many of `wanted` bytes may be sent.
    fn take(&self, wanted: usize) -> usize {
        let Some(capacity) = self.capacity else {
            return wanted;
        };
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *bytes >= capacity {
            let waited = self.acknowledged.wait(bytes);
            bytes = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let len = wanted.min(capacity - *bytes);
        *bytes += len;
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    #[test]
    fn a_small_link_is_never_overrun() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let sender = Sender::start(ours, Some(8)).unwrap();
        sender.send(&Frame::Stdin(b"0123456789"));
        let mut buffer = [0; 64];
        assert_eq!(theirs.read(&mut buffer).unwrap(), 8);
        assert!(
            theirs.read(&mut buffer).is_err(),
            "more than the link holds"
        );
        sender.received(8);
        assert_eq!(theirs.read(&mut buffer).unwrap(), 7);
    }
}
