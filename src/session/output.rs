//! The command's output, and our own words about the machine, on their way to our streams.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, OnceLock};

use apppot_contract::link::{Frame, Stream};
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::sender::Sender;
use super::MAX_PENDING;
use crate::outcome::Lost;

/// Credit goes back in steps of this many bytes, or when all has been written.
const CREDIT_STEP: usize = MAX_PENDING / 4;

/// One of our output streams, written by a thread of its own, from the first byte on: a reader who
/// stalls stalls nothing else. Credit goes back as bytes are written.
#[derive(Debug)]
pub(crate) struct Output {
    queue: Option<mpsc::Sender<Piece>>,
    /// Until there is something to write.
    idle: Option<(Writer, mpsc::Receiver<Piece>)>,
    state: Arc<State>,
    /// Hangs up when the thread has ended.
    ended: OwnedFd,
}

#[derive(Debug)]
enum Piece {
    /// The guest's, who gets credit for it.
    Guest(Vec<u8>),
    /// Our own.
    Note(Vec<u8>),
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in the queue.
    pending: AtomicUsize,
    /// Why something could not be written, when not because nobody wanted it.
    failure: OnceLock<String>,
}

impl Output {
    /// Will write to `descriptor` what is pushed.
    pub(crate) fn new(stream: Stream, descriptor: BorrowedFd, sender: Sender) -> io::Result<Self> {
        // A caller may have closed its standard streams.
        let file = descriptor.try_clone_to_owned().map(OwnedFd::into).ok();
        if file.is_none() {
            sender.send(&Frame::Close(stream));
        }
        let (queue, pieces) = mpsc::channel();
        let state = Arc::new(State::default());
        let (ended, ends) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let writer = Writer {
            stream,
            file,
            sender,
            state: Arc::clone(&state),
            owed: 0,
            _ends: ends,
        };
        Ok(Output {
            queue: Some(queue),
            idle: Some((writer, pieces)),
            state,
            ended,
        })
    }

    /// Takes bytes from the guest.
    ///
    /// # Errors
    /// The guest has sent more than it had credit for.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        // Empty frames have no meaning, and would cost memory that nothing bounds.
        if bytes.is_empty() {
            return Ok(());
        }
        let before = self.state.pending.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > 2 * MAX_PENDING {
            return Err(Lost::link(&"more output than the window allows"));
        }
        self.send(Piece::Guest(bytes.to_vec()));
        Ok(())
    }

    /// Takes a text of our own, unless too much is waiting already.
    pub(crate) fn note(&mut self, text: &str) {
        if self.state.pending.load(Ordering::Relaxed) < MAX_PENDING {
            self.state.pending.fetch_add(text.len(), Ordering::Relaxed);
            self.send(Piece::Note(text.as_bytes().to_vec()));
        }
    }

    fn send(&mut self, piece: Piece) {
        if let Some((writer, pieces)) = self.idle.take() {
            let started = std::thread::Builder::new()
                .name(format!("{:?}", writer.stream))
                .spawn(move || writer.run(&pieces));
            if let Err(error) = started {
                let _ = self.state.failure.set(error.to_string());
            }
        }
        if let Some(queue) = &self.queue {
            // The thread ends only when the queue is dropped.
            let _ = queue.send(piece);
        }
    }

    /// There will be no more. The stream is written out when [`Output::ended`] has hung up.
    pub(crate) fn close(&mut self) {
        self.queue = None;
        self.idle = None;
    }

    /// Why something could not be written.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.state.failure.get().map(String::as_str)
    }

    /// A descriptor that hangs up when everything has been written.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

#[derive(Debug)]
struct Writer {
    stream: Stream,
    /// `None` when nobody reads.
    file: Option<File>,
    sender: Sender,
    state: Arc<State>,
    /// Written, but the guest has not been told.
    owed: usize,
    _ends: OwnedFd,
}

impl Writer {
    fn run(mut self, pieces: &mpsc::Receiver<Piece>) {
        for piece in pieces {
            let (bytes, credit) = match &piece {
                Piece::Guest(bytes) => (bytes, bytes.len()),
                Piece::Note(bytes) => (bytes, 0),
            };
            self.write(bytes);
            self.owed += credit;
            let before = self.state.pending.fetch_sub(bytes.len(), Ordering::Relaxed);
            if self.owed >= CREDIT_STEP || (self.owed > 0 && before == bytes.len()) {
                // At most two windows.
                let owed = std::mem::take(&mut self.owed) as u32;
                self.sender.send(&Frame::Credit(self.stream, owed));
            }
        }
    }

    /// Once a write has failed, the command's own writes shall fail as well.
    fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else {
            return;
        };
        if let Err(error) = write_all(file, bytes) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                let _ = self.state.failure.set(error.to_string());
            }
            self.file = None;
            self.sender.send(&Frame::Close(self.stream));
        }
    }
}

/// As `Write::write_all`, also to a descriptor that somebody has made non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(
                    &mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
