//! The link: frames on one byte stream between launcher and agent, for the life of the machine.
//!
//! A frame is `{u8 type, u32 length (big endian), payload}`, its payload at most [`MAX_PAYLOAD`]
//! bytes. The agent speaks first: it puts its end into raw mode and sends [`Frame::Hello`]; the
//! launcher sends nothing before. Stream data is paid for with credit: a side sends at most
//! [`WINDOW`] bytes of a stream that the other has not yet returned with [`Frame::Credit`], so
//! neither a flood nor a stalled reader makes the other side hold more than that.

use std::fmt;

/// Version of the frames, in [`Frame::Hello`].
pub const PROTOCOL: u8 = 1;

/// The longest payload, bytes.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// Bytes of one stream that may be under way at once.
pub const WINDOW: usize = 1 << 20;

/// The agent says that it has read bytes of the link before there are as many as this of them.
pub const ACKNOWLEDGED: usize = 1 << 10;

/// Bytes before a payload.
pub const HEADER: usize = 5;

/// The streams that credit is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Launcher to agent.
    Stdin,
    /// Agent to launcher.
    Stdout,
    /// Agent to launcher.
    Stderr,
    /// Launcher to agent before the job, agent to launcher after it.
    Files,
}

/// One frame; the payload is borrowed from the decoder's buffer or the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Agent: ready. Protocol version, then the agent's own version as text.
    Hello {
        /// [`PROTOCOL`].
        protocol: u8,
        /// The agent's version, UTF-8 by intent, untrusted.
        agent: &'a [u8],
    },
    /// Launcher: the next piece of the contract's document; an empty one ends it.
    Contract(&'a [u8]),
    /// Launcher: bytes for the command's standard input.
    Stdin(&'a [u8]),
    /// Launcher: standard input has ended.
    StdinEof,
    /// Launcher: so many bytes of standard input have been put into the ring since the start.
    StdinRing(u64),
    /// Agent: bytes that the command wrote to standard output, or to its terminal.
    Stdout(&'a [u8]),
    /// Agent: bytes that the command wrote to standard error.
    Stderr(&'a [u8]),
    /// Either side: so many bytes of a stream have been consumed.
    Credit(Stream, u32),
    /// Agent: so many bytes of the link, headers included, have been read since the last such frame.
    /// Sent after every [`ACKNOWLEDGED`] bytes at the latest, for links that lose what nobody reads.
    Received(u32),
    /// Launcher: nobody reads this output stream any more; close it, as a pipe whose reader is gone.
    Close(Stream),
    /// Either side: bytes of the stream that carries the job's files.
    Files(&'a [u8]),
    /// Launcher: so many bytes of that stream have been put into its ring since the start.
    FilesRing(u64),
    /// Launcher: the terminal's new size.
    Resize {
        /// Height in characters.
        rows: u16,
        /// Width in characters.
        columns: u16,
    },
    /// Launcher: send this signal (its Linux number) to the command.
    Signal(u8),
    /// Launcher: end the job now, report, power off.
    Shutdown,
    /// Agent: a warning for the user, UTF-8 by intent, untrusted.
    Log(&'a [u8]),
    /// Agent: the job has ended, all output has been sent, all files are in place; a
    /// [`Report`](crate::Report). The last frame.
    Report(&'a [u8]),
}

/// The types on the wire. Never renumber: an agent installed in an image may be older.
mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const CONTRACT: u8 = 2;
    pub(super) const STDIN: u8 = 3;
    pub(super) const STDIN_EOF: u8 = 4;
    pub(super) const STDIN_RING: u8 = 5;
    pub(super) const STDOUT: u8 = 6;
    pub(super) const STDERR: u8 = 7;
    pub(super) const CREDIT: u8 = 8;
    pub(super) const RESIZE: u8 = 9;
    pub(super) const SIGNAL: u8 = 10;
    pub(super) const SHUTDOWN: u8 = 11;
    pub(super) const LOG: u8 = 12;
    pub(super) const REPORT: u8 = 13;
    pub(super) const CLOSE: u8 = 14;
    pub(super) const RECEIVED: u8 = 15;
    pub(super) const FILES: u8 = 16;
    pub(super) const FILES_RING: u8 = 17;
}

impl<'a> Frame<'a> {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Panics
    /// When the payload is longer than [`MAX_PAYLOAD`]: the sender cuts streams into frames. A text
    /// that is too long for [`Frame::Log`] is cut off instead.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Frame::Hello { protocol, agent } => put(out, kind::HELLO, &[&[protocol], agent]),
            Frame::Contract(bytes) => put(out, kind::CONTRACT, &[bytes]),
            Frame::Stdin(bytes) => put(out, kind::STDIN, &[bytes]),
            Frame::StdinEof => put(out, kind::STDIN_EOF, &[]),
            Frame::StdinRing(total) => put(out, kind::STDIN_RING, &[&total.to_be_bytes()]),
            Frame::Stdout(bytes) => put(out, kind::STDOUT, &[bytes]),
            Frame::Stderr(bytes) => put(out, kind::STDERR, &[bytes]),
            Frame::Credit(stream, bytes) => {
                put(
                    out,
                    kind::CREDIT,
                    &[&[stream.number()], &bytes.to_be_bytes()],
                );
            }
            Frame::Files(bytes) => put(out, kind::FILES, &[bytes]),
            Frame::FilesRing(total) => put(out, kind::FILES_RING, &[&total.to_be_bytes()]),
            Frame::Resize { rows, columns } => {
                put(
                    out,
                    kind::RESIZE,
                    &[&rows.to_be_bytes(), &columns.to_be_bytes()],
                );
            }
            Frame::Signal(number) => put(out, kind::SIGNAL, &[&[number]]),
            Frame::Close(stream) => put(out, kind::CLOSE, &[&[stream.number()]]),
            Frame::Received(bytes) => put(out, kind::RECEIVED, &[&bytes.to_be_bytes()]),
            Frame::Shutdown => put(out, kind::SHUTDOWN, &[]),
            Frame::Log(text) => put(out, kind::LOG, &[&text[..text.len().min(MAX_PAYLOAD)]]),
            Frame::Report(text) => put(out, kind::REPORT, &[text]),
        }
    }

    /// The frame as bytes of its own.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, LinkError> {
        let malformed = LinkError::Malformed { kind };
        Ok(match kind {
            kind::HELLO => match payload.split_first() {
                Some((&protocol, agent)) => Frame::Hello { protocol, agent },
                None => return Err(malformed),
            },
            kind::CONTRACT => Frame::Contract(payload),
            kind::STDIN => Frame::Stdin(payload),
            kind::STDIN_EOF if payload.is_empty() => Frame::StdinEof,
            kind::STDIN_RING => Frame::StdinRing(u64::from_be_bytes(
                payload.try_into().map_err(|_| malformed)?,
            )),
            kind::STDOUT => Frame::Stdout(payload),
            kind::STDERR => Frame::Stderr(payload),
            kind::CREDIT => match *payload {
                [stream, a, b, c, d] => Frame::Credit(
                    Stream::from_number(stream).ok_or(malformed)?,
                    u32::from_be_bytes([a, b, c, d]),
                ),
                _ => return Err(malformed),
            },
            kind::RESIZE => match *payload {
                [a, b, c, d] => Frame::Resize {
                    rows: u16::from_be_bytes([a, b]),
                    columns: u16::from_be_bytes([c, d]),
                },
                _ => return Err(malformed),
            },
            kind::SIGNAL => match *payload {
                [number] => Frame::Signal(number),
                _ => return Err(malformed),
            },
            kind::CLOSE => match *payload {
                [stream] => Frame::Close(Stream::from_number(stream).ok_or(malformed)?),
                _ => return Err(malformed),
            },
            kind::RECEIVED => Frame::Received(u32::from_be_bytes(
                payload.try_into().map_err(|_| malformed)?,
            )),
            kind::FILES => Frame::Files(payload),
            kind::FILES_RING => Frame::FilesRing(u64::from_be_bytes(
                payload.try_into().map_err(|_| malformed)?,
            )),
            kind::SHUTDOWN if payload.is_empty() => Frame::Shutdown,
            kind::LOG => Frame::Log(payload),
            kind::REPORT => Frame::Report(payload),
            kind::STDIN_EOF | kind::SHUTDOWN => return Err(malformed),
            _ => return Err(LinkError::UnknownType { kind }),
        })
    }
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    assert!(len <= MAX_PAYLOAD, "frame of {len} bytes");
    out.push(kind);
    // At most MAX_PAYLOAD.
    out.extend_from_slice(&(len as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
            Stream::Files => 3,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Stream::Stdin, Stream::Stdout, Stream::Stderr, Stream::Files]
            .into_iter()
            .find(|stream| stream.number() == number)
    }
}

/// Bytes that are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkError {
    /// A payload longer than [`MAX_PAYLOAD`].
    TooLong {
        /// The length that the header gave.
        length: u32,
    },
    /// A type that this version does not know.
    UnknownType {
        /// The type's number.
        kind: u8,
    },
    /// A payload that its type does not have.
    Malformed {
        /// The type's number.
        kind: u8,
    },
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::TooLong { length } => {
                write!(
                    f,
                    "frame of {length} bytes on the link, {MAX_PAYLOAD} is the most"
                )
            }
            LinkError::UnknownType { kind } => write!(f, "unknown frame type {kind} on the link"),
            LinkError::Malformed { kind } => {
                write!(f, "malformed frame of type {kind} on the link")
            }
        }
    }
}

impl std::error::Error for LinkError {}

/// Cuts a byte stream into frames. Holds at most one frame and one read more than that.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Start of what has not been handed out.
    start: usize,
    /// Why the stream cannot be read any further.
    failed: Option<LinkError>,
}

impl Decoder {
    /// Adds bytes that were read. Call [`Decoder::next`] until it has no more before adding again.
    /// After an error nothing is added any more: a sender of nonsense cannot fill the memory.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        if self.failed.is_some() {
            self.buffer.clear();
            return;
        }
        debug_assert!(
            self.buffer.len() < HEADER + MAX_PAYLOAD,
            "fed before all frames were taken"
        );
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` when more bytes are needed.
    ///
    /// # Errors
    /// The stream holds something that is no frame; it cannot be read any further, and every later
    /// call gives the same error.
    #[allow(clippy::should_implement_trait)] // It lends from the decoder: no Iterator can.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let (kind, len) = match header(&self.buffer[self.start..]) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.failed = Some(error);
                return Err(error);
            }
        };
        let from = self.start + HEADER;
        let Some(payload) = self.buffer.get(from..from + len) else {
            return Ok(None);
        };
        self.start = from + len;
        let frame = Frame::decode(kind, payload);
        self.failed = frame.err();
        frame.map(Some)
    }
}

/// Type and length of the frame that `bytes` start with, `None` when more bytes are needed.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, LinkError> {
    let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(len) if len <= MAX_PAYLOAD => Ok(Some((kind, len))),
        _ => Err(LinkError::TooLong { length }),
    }
}

#[cfg(test)]
mod tests;
