//! Who minds a machine while it runs: when its daemon is not heard any more, somebody must find out whether the
//! daemon is gone, and with it whoever would end the machine.
//!
//! Two connections do not share their fate. The one that the machine ends with is made before there is an event loop,
//! and so the daemon never asks over it whether the launcher is alive: a launcher may be stopped for as long as
//! somebody likes. The one by which events are heard is closed by the daemon then, and made anew here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::time::Duration;

use virt::domain::Domain;
use virt::error::ErrorNumber;

use super::connection::{Connection, PATIENCE};
use super::events::{Listening, News, Watch};
use crate::process::{kill_process, wait_readable};
use crate::{Error, MachineEnd, Result};

/// Seconds after which a daemon that says nothing is asked whether it is there, and how often: two minutes, for
/// there are busy hosts.
const KEEP_ALIVE: (i32, u32) = (24, 5);

/// The pause before a connection that could not be made is made anew.
const AGAIN: Duration = Duration::from_secs(1);

/// A machine that is minded.
#[derive(Debug)]
pub(super) struct Minder {
    pub(super) listening: Listening,
    pub(super) news: Receiver<News>,
    pub(super) watch: Arc<Watch>,
    pub(super) domain: Arc<Domain>,
    /// QEMU's process, by its pidfd.
    pub(super) process: Arc<OwnedFd>,
    /// The connection that the machine ends with.
    pub(super) connection: Arc<Connection>,
}

/// Has `watch` hear of its domain over a connection of its own, which asks the daemon whether it is there.
///
/// # Errors
/// The daemon is not to be reached.
pub(super) fn listen(uri: &str, watch: &Arc<Watch>) -> Result<Listening> {
    let connection = Connection::open(Some(uri))?;
    // Where the daemon cannot do that, its silence goes unnoticed.
    let (interval, count) = KEEP_ALIVE;
    let _ = connection.handle().set_keep_alive(interval, count);
    let (heard, watch) = (Arc::clone(&connection), Arc::clone(watch));
    connection.ask(PATIENCE, move |_| Listening::start(heard, &watch))?
}

/// Waits for QEMU's end, which the daemon tells of, unless it hangs.
fn outlive(process: BorrowedFd<'_>, watch: &Watch) {
    if !matches!(wait_readable(process, None), Ok(true)) {
        return;
    }
    // In steps: time in which the launcher is stopped does not count.
    for _ in 0..30 {
        if watch.end().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    watch.set_end(MachineEnd::Died);
}

impl Minder {
    /// Minds it in a thread, until [`News::Over`].
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn start(mut self) -> Result<()> {
        let (process, watch) = (Arc::clone(&self.process), Arc::clone(&self.watch));
        let thread = std::thread::Builder::new().name(String::from("QEMU's end"));
        let dying = thread.spawn(move || outlive(process.as_fd(), &watch));
        dying.map_err(Error::system("mind the machine"))?;
        let thread = std::thread::Builder::new().name(String::from("minder"));
        let minding = thread.spawn(move || {
            while let Ok(News::Lost) = self.news.recv() {
                match self.listen_again() {
                    Ok(true) => {}
                    Ok(false) => self.watch.set_end(MachineEnd::Unheard),
                    Err(_) => {
                        // Nobody is left who would end it.
                        self.watch.set_end(MachineEnd::Disconnected);
                        kill_process(self.process.as_fd());
                    }
                }
            }
        });
        minding.map(drop).map_err(Error::system("mind the machine"))
    }

    /// Whether the machine is still there; then it is heard again.
    ///
    /// # Errors
    /// The daemon is gone, or does not answer.
    fn listen_again(&mut self) -> Result<bool> {
        while self.is_there()? {
            // The launcher may be stopped again meanwhile, and the new connection closed like the last one: what
            // counts is that the daemon answers over the one that the machine ends with.
            if let Ok(listening) = listen(&self.connection.uri, &self.watch) {
                self.listening = listening;
                // It may have ended before it was listened to.
                return self.is_there();
            }
            std::thread::sleep(AGAIN);
        }
        Ok(false)
    }

    fn is_there(&self) -> Result<bool> {
        let domain = Arc::clone(&self.domain);
        match self.connection.ask(PATIENCE, move |_| domain.is_active())? {
            Ok(is_active) => Ok(is_active),
            Err(error) if error.code() == ErrorNumber::NoDomain => Ok(false),
            Err(error) => Err(super::connection::failed("ask libvirt for the machine")(
                error,
            )),
        }
    }
}
