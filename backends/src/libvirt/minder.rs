//! Who minds a machine while it runs: when its daemon is not heard any more, somebody must find out whether the
//! daemon is gone, and with it whoever would end the machine.
//!
//! Two connections do not share their fate. The one that the machine ends with is made before there is an event loop,
//! and so the daemon never asks over it whether the launcher is alive: a launcher may be stopped for as long as
//! somebody likes. The one by which events are heard is closed by the daemon then, and made anew here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::sync::Arc;

use virt::domain::Domain;
use virt::error::ErrorNumber;

use super::connection::{Connection, PATIENCE};
use super::events::{Listening, News, Watch};
use crate::process::kill_process;
use crate::{Error, MachineEnd, Result};

/// Seconds after which a daemon that says nothing is asked whether it is there, and how often: two minutes, for
/// there are busy hosts.
const KEEP_ALIVE: (i32, u32) = (24, 5);

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
    Listening::start(connection, watch)
}

impl Minder {
    /// Minds it in a thread, until [`News::Over`].
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn start(mut self) -> Result<()> {
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
        if !self.is_there()? {
            return Ok(false);
        }
        self.listening = listen(&self.connection.uri, &self.watch)?;
        // It may have ended before it was listened to.
        self.is_there()
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
