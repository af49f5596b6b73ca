//! The launcher's end of the agent's link.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::Arc;

use apppot_contract::link::{Decoder, Frame, MAX_PAYLOAD, PROTOCOL};

/// Where frames are sent to. Copies send to the same link; whoever sends does not wait, for a thread of
/// its own writes. What is under way is bounded by the windows of the streams.
#[derive(Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Vec<u8>>,
    socket: Arc<UnixStream>,
}

impl Sender {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        let (queue, frames) = mpsc::channel::<Vec<u8>>();
        let socket = Arc::new(socket);
        let stream = Arc::clone(&socket);
        std::thread::Builder::new().spawn(move || {
            for frame in frames {
                // The agent has gone, which whoever reads the link notices.
                if (&*stream).write_all(&frame).is_err() {
                    return;
                }
            }
        })?;
        Ok(Sender { queue, socket })
    }

    /// Sends `frame`, after those sent before.
    pub(crate) fn send(&self, frame: &Frame) {
        // Fails only when the agent has gone.
        let _ = self.queue.send(frame.to_vec());
    }

    /// Ends the link in both directions.
    pub(crate) fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// What comes from the agent.
pub(crate) struct Receiver {
    socket: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Receiver {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Receiver {
            socket,
            decoder: Decoder::default(),
            buffer: vec![0; MAX_PAYLOAD],
        }
    }

    /// Gives every frame to `take`, until that says to stop or the link ends. What `take` returned.
    ///
    /// # Errors
    /// Something came that is no frame, or `take`'s.
    pub(crate) fn each<T>(
        &mut self,
        mut take: impl FnMut(Frame) -> Result<Option<T>, String>,
    ) -> Result<Option<T>, String> {
        loop {
            while let Some(frame) = self.decoder.next().map_err(|error| error.to_string())? {
                if let Some(value) = take(frame)? {
                    return Ok(Some(value));
                }
            }
            match self.socket.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => self.decoder.feed(&self.buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Waits for the agent's first words.
    ///
    /// # Errors
    /// They are others, or none come.
    pub(crate) fn greet(&mut self) -> Result<(), String> {
        let greeted = self.each(|frame| match frame {
            Frame::Hello {
                protocol: PROTOCOL, ..
            } => Ok(Some(())),
            Frame::Hello { protocol, .. } => {
                Err(format!("the agent speaks version {protocol} of the link"))
            }
            _ => Err(String::from("the agent does not say hello")),
        })?;
        greeted.ok_or_else(|| String::from("the agent has gone"))
    }
}
