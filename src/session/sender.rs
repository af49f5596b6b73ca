//! Frames on their way to the agent, written by a thread of their own: whoever sends does not wait.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use apppot_contract::link::Frame;

/// Where frames are sent to. Copies send to the same link.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Vec<u8>>,
}

impl Sender {
    /// Starts the thread that writes to `stream`.
    pub(crate) fn start(mut stream: UnixStream) -> io::Result<Self> {
        let (queue, frames) = mpsc::channel::<Vec<u8>>();
        std::thread::Builder::new()
            .name(String::from("link"))
            .spawn(move || {
                for frame in frames {
                    // The machine has ended: its end is noticed elsewhere.
                    if stream.write_all(&frame).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Sender { queue })
    }

    /// Sends `frame`, after those sent before.
    pub(crate) fn send(&self, frame: &Frame) {
        // Fails only when the thread has ended with the machine.
        let _ = self.queue.send(frame.to_vec());
    }
}
