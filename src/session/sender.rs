//! Frames on their way to the agent, written by a thread of their own, from the first one on: whoever sends
//! does not wait.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{mpsc, Arc, Condvar, Mutex, PoisonError};

use apppot_contract::link::Frame;

/// Where frames are sent to. Copies send to the same link.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Vec<u8>>,
    /// Until there is something to send.
    idle: Arc<Mutex<Option<Writer>>>,
    under_way: Arc<UnderWay>,
}

#[derive(Debug)]
struct Writer {
    stream: UnixStream,
    frames: mpsc::Receiver<Vec<u8>>,
    room: Arc<UnderWay>,
}

/// Bytes that the agent has not acknowledged, on a link that holds only so many.
#[derive(Debug)]
struct UnderWay {
    capacity: Option<usize>,
    bytes: Mutex<usize>,
    acknowledged: Condvar,
}

impl Sender {
    /// Will write to `stream`, which holds `capacity` bytes.
    pub(crate) fn new(stream: UnixStream, capacity: Option<usize>) -> Self {
        let (queue, frames) = mpsc::channel();
        let under_way = Arc::new(UnderWay {
            capacity,
            bytes: Mutex::new(0),
            acknowledged: Condvar::new(),
        });
        let room = Arc::clone(&under_way);
        let writer = Writer {
            stream,
            frames,
            room,
        };
        Sender {
            queue,
            idle: Arc::new(Mutex::new(Some(writer))),
            under_way,
        }
    }

    /// Sends `frame`, after those sent before.
    pub(crate) fn send(&self, frame: &Frame) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = idle.take() {
            let thread = std::thread::Builder::new().name(String::from("link"));
            // Without a thread there is no session: the machine is ended as one that hangs.
            let _ = thread.spawn(move || writer.run());
        }
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

impl Writer {
    fn run(mut self) {
        for frame in self.frames {
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let len = self.room.take(rest.len());
                // The machine has ended: its end is noticed elsewhere.
                if self.stream.write_all(&rest[..len]).is_err() {
                    return;
                }
                rest = &rest[len..];
            }
        }
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
        let sender = Sender::new(ours, Some(8));
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
