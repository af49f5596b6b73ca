//! What libvirt says of a domain while it runs. The crate `virt` has no safe way to hear it, so this
//! calls libvirt's C functions, as `monitor.rs` does.
//!
//! libvirt calls back from its event loop, which has a thread of its own here, for as long as the process
//! lives. Callbacks only write down what they are told and wake whoever waits.

use std::ffi::{c_int, c_void, CStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use virt::connect::Connect;
use virt_sys as sys;

use super::connection::{failed, Connection};
use super::monitor;
use crate::{Error, MachineEnd, Result};

/// What has been heard of one domain.
#[derive(Debug)]
pub(super) struct Watch {
    heard: Mutex<Option<MachineEnd>>,
    /// Why it is about to stop, where QEMU has said that.
    cause: Mutex<Option<MachineEnd>>,
    /// Readable when somebody has asked it to shut down.
    asked: EventFd,
    /// Readable when the domain has ended or nothing more will be heard.
    ended: EventFd,
    uuid: String,
    news: Sender<News>,
}

/// What whoever minds a domain must know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing will be heard any more over this connection.
    Lost,
    /// Nobody wants to hear any more.
    Over,
}

impl Watch {
    /// Nothing yet, of the domain with this UUID.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub(super) fn new(uuid: &str) -> Result<(Arc<Self>, Receiver<News>)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let descriptor = || EventFd::from_flags(flags).map_err(Error::system("watch the machine"));
        let (news, receiver) = mpsc::channel();
        let watch = Arc::new(Watch {
            heard: Mutex::default(),
            cause: Mutex::default(),
            asked: descriptor()?,
            ended: descriptor()?,
            uuid: uuid.to_owned(),
            news,
        });
        Ok((watch, receiver))
    }

    /// Passes it on; nobody may be there any more.
    pub(super) fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }

    /// A descriptor that becomes readable at the end.
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// How it ended, if it has.
    pub(super) fn end(&self) -> Option<MachineEnd> {
        *self.heard()
    }

    /// It has ended like this; what was heard first holds.
    pub(super) fn set_end(&self, end: MachineEnd) {
        self.heard().get_or_insert(end);
        // Fails only when it is readable anyway.
        let _ = self.ended.write(1);
    }

    /// Becomes readable when somebody asks it to shut down.
    pub(super) fn shutdown_requests(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }

    /// Somebody asks it to shut down.
    pub(super) fn ask_to_shut_down(&self) {
        // Fails only when it is readable anyway.
        let _ = self.asked.write(1);
    }

    fn cause(&self) -> Option<MachineEnd> {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is about to end like this.
    pub(super) fn set_cause(&self, cause: MachineEnd) {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Option<MachineEnd>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event of the domain's life, and its detail.
    fn lifecycle(&self, event: u32, detail: u32) {
        match event {
            sys::VIR_DOMAIN_EVENT_CRASHED => self.set_end(MachineEnd::Panicked),
            sys::VIR_DOMAIN_EVENT_STOPPED => self.set_end(match stopped(detail) {
                MachineEnd::ShutDown => self.cause().unwrap_or(MachineEnd::ShutDown),
                end => end,
            }),
            _ => {}
        }
    }
}

/// What a domain's stop with this detail means. Where a reset is to end the machine, QEMU reports it like a
/// shutdown.
fn stopped(detail: u32) -> MachineEnd {
    match detail {
        sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => MachineEnd::ShutDown,
        sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED
        | sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED
        | sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => MachineEnd::Destroyed,
        sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => MachineEnd::Panicked,
        _ => MachineEnd::Died,
    }
}

/// Starts libvirt's event loop, which must be there before a connection is made. Once a process.
///
/// # Errors
/// There is no thread.
pub(super) fn start_loop() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: takes nothing; called once, before any connection that events are wanted of.
        if unsafe { sys::virEventRegisterDefaultImpl() } < 0 {
            result = Err(std::io::Error::other("libvirt has no event loop"));
            return;
        }
        let thread = std::thread::Builder::new().name(String::from("libvirt"));
        let endless = thread.spawn(|| loop {
            // SAFETY: takes nothing; the default implementation has been registered. It returns after
            // each round.
            if unsafe { sys::virEventRunDefaultImpl() } < 0 {
                // For want of memory, say: the next round may do.
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        result = endless.map(drop);
    });
    result.map_err(Error::system("listen to libvirt"))
}

/// A connection by which a watch hears of its domain, until this is dropped or the connection ends.
#[derive(Debug)]
pub(super) struct Listening {
    connection: Arc<Connection>,
    /// The number of the lifecycle's callback.
    id: c_int,
    /// The number of the monitor's callback.
    monitor: Option<c_int>,
}

impl Listening {
    /// Has `watch` hear of its domain, and of the connection's end. The event loop must run.
    ///
    /// # Errors
    /// The daemon refuses.
    pub(super) fn start(connection: Arc<Connection>, watch: &Arc<Watch>) -> Result<Self> {
        let id = register(connection.handle(), watch)?;
        let monitor = monitor::register(connection.handle(), watch);
        let listening = Listening {
            connection,
            id,
            monitor,
        };
        let given = Arc::into_raw(Arc::clone(watch)).cast_mut().cast();
        let connect = listening.connection.handle().as_ptr();
        // SAFETY: the connection is open. The watch is given away, and `forget` gives it back when libvirt has
        // no more use for it.
        let result = unsafe {
            sys::virConnectRegisterCloseCallback(connect, Some(on_close), given, Some(forget))
        };
        taken(result, given)?;
        Ok(listening)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let (connection, id, monitor) = (Arc::clone(&self.connection), self.id, self.monitor);
        let thread = std::thread::Builder::new().name(String::from("libvirt call"));
        // Nobody waits for it: the daemon may hang. Without a thread libvirt tells who does not listen.
        let _ = thread.spawn(move || {
            if let Some(monitor) = monitor {
                monitor::deregister(connection.handle(), monitor);
            }
            let connect = connection.handle().as_ptr();
            // Either may be gone already. As long as callbacks are there, libvirt keeps the connection open.
            // SAFETY: the connection has not been closed, the callbacks are those of `start`.
            unsafe {
                sys::virConnectDomainEventDeregisterAny(connect, id);
                sys::virConnectUnregisterCloseCallback(connect, Some(on_close));
            }
        });
    }
}

/// Has libvirt tell `watch` of the lives of domains; the callback's number.
fn register(connect: &Connect, watch: &Arc<Watch>) -> Result<c_int> {
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    // SAFETY: libvirt's own way (VIR_DOMAIN_EVENT_CALLBACK): it calls the function as what the event's number
    // says, which for VIR_DOMAIN_EVENT_ID_LIFECYCLE are these parameters.
    let lifecycle = unsafe {
        std::mem::transmute::<
            unsafe extern "C" fn(
                sys::virConnectPtr,
                sys::virDomainPtr,
                c_int,
                c_int,
                *mut c_void,
            ) -> c_int,
            Generic,
        >(on_lifecycle)
    };
    let given = Arc::into_raw(Arc::clone(watch)).cast_mut().cast();
    // SAFETY: the connection is open; no domain: events of all of them. The watch is given away, and `forget`
    // gives it back when libvirt has no more use for it.
    let id = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            std::ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
            Some(lifecycle),
            given,
            Some(forget),
        )
    };
    taken(id, given)?;
    Ok(id)
}

/// Whether libvirt has taken a callback, and the watch with it.
fn taken(result: c_int, watch: *mut c_void) -> Result<()> {
    if result >= 0 {
        return Ok(());
    }
    let error = virt::error::Error::last_error();
    // SAFETY: libvirt has not taken it, so it is ours.
    unsafe { forget(watch) };
    Err(failed("listen to libvirt")(error))
}

/// Gives a watch back.
pub(super) unsafe extern "C" fn forget(watch: *mut c_void) {
    // SAFETY: comes from `Arc::into_raw` in `Listening::start` or `register`; called once for each.
    drop(unsafe { Arc::from_raw(watch.cast_const().cast::<Watch>()) });
}

/// The watch, when it is this domain's.
///
/// # Safety
/// `watch` was given away in `register` and has not come back; `domain` is a domain of libvirt's.
pub(super) unsafe fn of<'a>(watch: *mut c_void, domain: sys::virDomainPtr) -> Option<&'a Watch> {
    let mut uuid = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the buffer is as long as the function wants it; it ends in NUL where the call succeeds.
    let name = unsafe {
        if sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) < 0 {
            return None;
        }
        CStr::from_ptr(uuid.as_ptr())
    };
    // SAFETY: see above.
    let watch = unsafe { &*watch.cast_const().cast::<Watch>() };
    (name.to_bytes() == watch.uuid.as_bytes()).then_some(watch)
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    watch: *mut c_void,
) -> c_int {
    // SAFETY: libvirt passes what it was given in `register`.
    if let Some(watch) = unsafe { of(watch, domain) } {
        watch.lifecycle(event as u32, detail as u32);
    }
    0
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _reason: c_int, watch: *mut c_void) {
    // SAFETY: libvirt passes what it was given in `Listening::start`, and it has not come back yet.
    let watch = unsafe { &*watch.cast_const().cast::<Watch>() };
    watch.tell(News::Lost);
}

#[cfg(test)]
mod tests;
