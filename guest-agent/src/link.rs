//! The agent's end of the link.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use apppot_contract::link::{
    Decoder, Frame, LinkError, ACKNOWLEDGED, HEADER, MAX_PAYLOAD, PROTOCOL,
};
use apppot_contract::{document, Contract};
use nix::sys::termios;

use crate::devices;

/// Frames over a device.
pub(crate) struct Link {
    device: File,
    decoder: Decoder,
    /// Frames that came while others were waited for.
    kept: Decoder,
    input: Vec<u8>,
    /// Bytes read that the launcher has not been told of.
    received: usize,
}

impl Link {
    /// Opens the device, takes away what a terminal line does to bytes, and says hello: from then
    /// on the launcher may send.
    pub(crate) fn open(device: &Path) -> io::Result<Self> {
        let mut link = Self::reopen(device)?;
        link.greet()?;
        Ok(link)
    }

    /// Says hello over a socket.
    pub(crate) fn over(socket: File) -> io::Result<Self> {
        let mut link = Self::with(socket);
        link.greet()?;
        Ok(link)
    }

    fn with(device: File) -> Self {
        Link {
            device,
            decoder: Decoder::default(),
            kept: Decoder::default(),
            input: Vec::new(),
            received: 0,
        }
    }

    fn greet(&mut self) -> io::Result<()> {
        self.send(&Frame::Hello {
            protocol: PROTOCOL,
            agent: env!("CARGO_PKG_VERSION").as_bytes(),
        })
    }

    /// As [`Link::open`], when hello has been said already.
    pub(crate) fn reopen(device: &Path) -> io::Result<Self> {
        devices::wait_for(device);
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(device)?;
        if let Ok(mut settings) = termios::tcgetattr(&file) {
            termios::cfmakeraw(&mut settings);
            termios::tcsetattr(&file, termios::SetArg::TCSANOW, &settings)?;
        }
        Ok(Self::with(file))
    }

    /// Sends a frame. Blocks while the launcher takes nothing, which it always soon does: it never
    /// waits for its own output while reading (credit bounds what it must hold).
    pub(crate) fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.device.write_all(&frame.to_vec())
    }

    /// Sends bytes that are a frame already.
    pub(crate) fn send_encoded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.device.write_all(bytes)
    }

    /// Reads what is there, once; frames are then to be had from [`Link::next`].
    pub(crate) fn read(&mut self) -> io::Result<()> {
        // Most jobs are sent nothing, and pages that are not touched cost nothing.
        self.input.resize(MAX_PAYLOAD, 0);
        let len = self.device.read(&mut self.input)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.decoder.feed(&self.input[..len]);
        self.received += len;
        if self.received >= ACKNOWLEDGED {
            // One read is at most a frame's payload.
            let received = std::mem::take(&mut self.received) as u32;
            self.send(&Frame::Received(received))?;
        }
        Ok(())
    }

    /// The next frame that has been read whole, those that were kept first.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        if let Some(frame) = self.kept.next()? {
            return Ok(Some(frame));
        }
        self.decoder.next()
    }

    /// The next frame that has been read whole and was not kept.
    pub(crate) fn fresh(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        self.decoder.next()
    }

    /// Keeps frames for [`Link::next`].
    pub(crate) fn keep(&mut self, frames: &[u8]) {
        self.kept.feed(frames);
    }

    /// Waits for the contract's document.
    pub(crate) fn receive_contract(&mut self) -> Result<Contract, String> {
        let mut text = Vec::new();
        loop {
            while let Some(frame) = self.decoder.next().map_err(|error| error.to_string())? {
                match frame {
                    Frame::Contract([]) => {
                        return document::decode(&text).map_err(|error| error.to_string());
                    }
                    Frame::Contract(piece) => text.extend_from_slice(piece),
                    _ => return Err(String::from("another frame came before it")),
                }
                if text.len() > document::MAX_LEN {
                    return Err(format!("it is longer than {} bytes", document::MAX_LEN));
                }
            }
            self.read().map_err(|error| error.to_string())?;
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// A buffer that output is read into behind room for the frame's header, so that nothing is copied.
pub(crate) struct OutputBuffer(Vec<u8>);

impl OutputBuffer {
    /// Bytes that fit: a page less than a frame takes, so that with its header it is two writes, not
    /// three, of the 32 KiB that a virtio-serial port takes at once.
    pub(crate) const SIZE: usize = MAX_PAYLOAD - 4096;

    pub(crate) fn new() -> Self {
        OutputBuffer(vec![0; HEADER + Self::SIZE])
    }

    /// Where to read up to `most` bytes to, as many as fit.
    pub(crate) fn payload(&mut self, most: usize) -> &mut [u8] {
        let end = HEADER + most.min(Self::SIZE);
        &mut self.0[HEADER..end]
    }

    /// The frame of the `len` bytes that were read; `empty` is the frame's kind, without payload.
    pub(crate) fn frame(&mut self, empty: &Frame, len: usize) -> &[u8] {
        let mut header = empty.to_vec();
        // At most SIZE.
        header[1..HEADER].copy_from_slice(&(len as u32).to_be_bytes());
        self.0[..HEADER].copy_from_slice(&header);
        &self.0[..HEADER + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_makes_the_same_frame_as_the_encoder() {
        let mut buffer = OutputBuffer::new();
        buffer.payload(3).copy_from_slice(b"abc");
        let frame = buffer.frame(&Frame::Stdout(b""), 3);
        assert_eq!(frame, Frame::Stdout(b"abc").to_vec());
    }
}
