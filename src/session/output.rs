//! The command's output on its way to ours.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;

use apppot_contract::link::{Frame, Stream};

use super::sender::Sender;
use super::MAX_PENDING;
use crate::outcome::Lost;

/// One of our output streams, written by a thread of its own: a reader who stalls stalls nothing
/// else. Credit goes back as bytes are written.
#[derive(Debug)]
pub(crate) struct Output {
    queue: Option<mpsc::Sender<Vec<u8>>>,
    pending: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Starts writing to `descriptor` what is pushed.
    pub(crate) fn start(
        stream: Stream,
        descriptor: BorrowedFd,
        sender: Sender,
    ) -> io::Result<Self> {
        // A caller may have closed its standard streams.
        let file = descriptor.try_clone_to_owned().map(OwnedFd::into).ok();
        let (queue, pieces) = mpsc::channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            stream,
            file,
            sender,
            pending: Arc::clone(&pending),
        };
        let thread = std::thread::Builder::new()
            .name(format!("{stream:?}"))
            .spawn(move || writer.run(&pieces))?;
        Ok(Output {
            queue: Some(queue),
            pending,
            thread: Some(thread),
        })
    }

    /// Takes bytes from the guest.
    ///
    /// # Errors
    /// The guest has sent more than it had credit for.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let before = self.pending.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > MAX_PENDING {
            return Err(Lost::link(&"more output than the window allows"));
        }
        if let Some(queue) = &self.queue {
            // The thread ends only when the queue is dropped.
            let _ = queue.send(bytes.to_vec());
        }
        Ok(())
    }

    /// Waits until everything has been written.
    pub(crate) fn finish(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    stream: Stream,
    /// `None` when nobody reads.
    file: Option<File>,
    sender: Sender,
    pending: Arc<AtomicUsize>,
}

impl Writer {
    fn run(mut self, pieces: &mpsc::Receiver<Vec<u8>>) {
        if self.file.is_none() {
            self.sender.send(&Frame::Close(self.stream));
        }
        for bytes in pieces {
            self.write(&bytes);
            self.pending.fetch_sub(bytes.len(), Ordering::Relaxed);
            // A piece is a frame's payload, at most 64 KiB.
            self.sender
                .send(&Frame::Credit(self.stream, bytes.len() as u32));
        }
    }

    /// Once a write has failed, the command's own writes shall fail as well.
    fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else {
            return;
        };
        if let Err(error) = write_all(file, bytes) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                crate::failure::warn(&format!(
                    "cannot write the command's {:?}: {error}",
                    self.stream
                ));
            }
            self.file = None;
            self.sender.send(&Frame::Close(self.stream));
        }
    }
}

/// As `Write::write_all`, also to a descriptor that somebody has made non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd;
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
