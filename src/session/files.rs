//! The job's files on the link: sent before standard input, taken back by a thread of their own.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;

use apppot_contract::link::{Frame, Stream, WINDOW};
use nix::fcntl::OFlag;

use super::feed::{Feed, Returns};
use super::sender::Sender;
use crate::outcome::Lost;
use crate::staging::{Received, Staging};

/// Credit is returned in steps of this.
const CREDIT_STEP: usize = 256 << 10;
/// Bytes sent at once.
const AT_ONCE: usize = 256 << 10;

/// The job's files, while the machine runs.
#[derive(Debug)]
pub(super) struct Files {
    staging: Arc<Staging>,
    returns: Option<Returns>,
    /// Whether they are on their way to the guest.
    sending: Arc<AtomicBool>,
    /// Readable when sending them has failed.
    failed: OwnedFd,
    failing: Arc<OwnedFd>,
    results: Option<Results>,
}

/// Results, on their way into the job directory.
#[derive(Debug)]
struct Results {
    queue: Option<mpsc::Sender<Vec<u8>>>,
    /// Bytes that have not been put into their places.
    pending: Arc<AtomicUsize>,
    thread: JoinHandle<Received>,
    /// Hangs up when the thread has ended.
    ended: OwnedFd,
}

impl Files {
    pub(super) fn new(staging: Arc<Staging>) -> io::Result<Self> {
        let (failed, failing) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Files {
            staging,
            returns: None,
            sending: Arc::default(),
            failed,
            failing: Arc::new(failing),
            results: None,
        })
    }

    /// What is to be done to send them, by a thread that may wait; `None` when the link does not carry
    /// them. It says whether the job can go on.
    pub(super) fn sender(&mut self, feed: Feed) -> Option<impl FnOnce() -> bool + Send> {
        if !self.staging.uses_link() {
            return None;
        }
        self.returns = Some(feed.returns());
        self.sending.store(true, Ordering::Release);
        let (staging, sending) = (Arc::clone(&self.staging), Arc::clone(&self.sending));
        let failing = Arc::clone(&self.failing);
        Some(move || {
            let sent = staging.send(&mut BufWriter::with_capacity(AT_ONCE, feed));
            sending.store(false, Ordering::Release);
            if let Err(error) = &sent {
                crate::failure::print(error, false);
                // A pipe takes one byte.
                let _ = nix::unistd::write(&failing, b"!");
            }
            sent.is_ok()
        })
    }

    /// Whether nothing runs in the guest yet, for want of files.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Acquire)
    }

    /// Descriptors with something to tell when files cannot be sent, or results not be put back.
    pub(super) fn failures(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.failed.as_fd()].into_iter().chain(self.ended())
    }

    /// The guest has consumed `bytes` of them.
    pub(super) fn credit(&self, bytes: u32) {
        if let Some(returns) = &self.returns {
            returns.credit(bytes);
        }
    }

    /// Takes a piece of the results.
    pub(super) fn push(&mut self, bytes: &[u8], sender: &Sender) -> Result<(), Lost> {
        // An empty frame says that there is something to wait for.
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.staging.uses_link() || self.is_sending() {
            return Err(Lost::link(&"files that nobody has asked for"));
        }
        if self.results.is_none() {
            let started = Results::start(Arc::clone(&self.staging), Some(sender.clone()));
            self.results = Some(started.map_err(|error| Lost::link(&error))?);
        }
        let Some(results) = &self.results else {
            return Ok(());
        };
        let before = results.pending.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > 2 * WINDOW {
            return Err(Lost::link(&"more files than the window allows"));
        }
        if let Some(queue) = &results.queue {
            // The thread may have given up; it says so itself.
            let _ = queue.send(bytes.to_vec());
        }
        Ok(())
    }

    /// The machine has ended: there will be no more. `whole`: the agent has said that this is all.
    pub(super) fn close(&mut self, whole: bool) -> io::Result<()> {
        if whole && self.results.is_none() {
            // They are on a disk; or there are none, which is said by an empty stream.
            self.results = Some(Results::start(Arc::clone(&self.staging), None)?);
        }
        if let Some(results) = &mut self.results {
            results.queue = None;
        }
        Ok(())
    }

    /// Hangs up when everything has been put into its place.
    pub(super) fn ended(&self) -> Option<BorrowedFd<'_>> {
        self.results.as_ref().map(|results| results.ended.as_fd())
    }

    /// What has become of the results; `None` when there were none.
    pub(super) fn received(&mut self) -> Option<Received> {
        let results = self.results.take()?;
        results.thread.join().ok()
    }
}

impl Results {
    /// Starts the thread that reads what is pushed; without `sender`, what is on the disk.
    fn start(staging: Arc<Staging>, sender: Option<Sender>) -> io::Result<Self> {
        let (queue, pieces) = mpsc::channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let (ended, ends) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let stream: Box<dyn Read + Send> = match (sender, staging.results_disk()) {
            (None, Some(disk)) => Box::new(disk),
            (sender, _) => Box::new(Pieces {
                pieces,
                piece: Vec::new(),
                at: 0,
                pending: Arc::clone(&pending),
                owed: 0,
                sender,
            }),
        };
        let thread = std::thread::Builder::new()
            .name(String::from("files"))
            .spawn(move || {
                let received = staging.receive(stream);
                drop(File::from(ends));
                received
            })?;
        Ok(Results {
            queue: Some(queue),
            pending,
            thread,
            ended,
        })
    }
}

/// Pieces of a stream, as they come. What has been read has been put into its place, or will be
/// before the next is.
struct Pieces {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    pending: Arc<AtomicUsize>,
    owed: usize,
    sender: Option<Sender>,
}

impl Pieces {
    /// Returns credit for the piece that has been read. Whether there is another one.
    fn next(&mut self) -> bool {
        let len = self.piece.len();
        self.owed += len;
        let before = self.pending.fetch_sub(len, Ordering::Relaxed);
        if self.owed >= CREDIT_STEP || (self.owed > 0 && before == len) {
            // At most two windows.
            let owed = std::mem::take(&mut self.owed) as u32;
            if let Some(sender) = &self.sender {
                sender.send(&Frame::Credit(Stream::Files, owed));
            }
        }
        self.at = 0;
        match self.pieces.recv() {
            Ok(piece) => {
                self.piece = piece;
                true
            }
            Err(_) => {
                self.piece.clear();
                false
            }
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.next() {
            return Ok(0);
        }
        let len = buffer.len().min(self.piece.len() - self.at);
        buffer[..len].copy_from_slice(&self.piece[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
