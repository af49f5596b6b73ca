//! What QEMU says on its monitor, as libvirt passes it on: that somebody asks the machine to shut down, and why the
//! machine stopped, which libvirt's own events do not tell.

use std::ffi::{c_char, c_int, c_longlong, c_uint, c_void, CStr};
use std::sync::Arc;

use serde_json::Value;
use virt::connect::Connect;
use virt_sys as sys;

use super::events::{forget, of, Watch};
use crate::MachineEnd;

/// QMP's names of the events.
const EVENTS: &CStr = c"^(POWERDOWN|SHUTDOWN)$";

/// Has libvirt tell `watch` of these events; the callback's number. `None` where the daemon's policy is against it:
/// less is known then.
pub(super) fn register(connect: &Connect, watch: &Arc<Watch>) -> Option<c_int> {
    let given: *mut c_void = Arc::into_raw(Arc::clone(watch)).cast_mut().cast();
    // SAFETY: the connection is open; no domain: events of all of them. The watch is given away, and `forget`
    // gives it back when libvirt has no more use for it.
    let id = unsafe {
        sys::virConnectDomainQemuMonitorEventRegister(
            connect.as_ptr(),
            std::ptr::null_mut(),
            EVENTS.as_ptr(),
            Some(on_event),
            given,
            Some(forget),
            sys::VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX,
        )
    };
    if id < 0 {
        // SAFETY: libvirt has not taken it, so it is ours.
        unsafe { forget(given) };
        return None;
    }
    Some(id)
}

/// Ends what [`register`] has begun.
pub(super) fn deregister(connect: &Connect, id: c_int) {
    // SAFETY: the connection has not been closed. The callback may be gone already, which is an error.
    unsafe { sys::virConnectDomainQemuMonitorEventDeregister(connect.as_ptr(), id) };
}

unsafe extern "C" fn on_event(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: *const c_char,
    _seconds: c_longlong,
    _microseconds: c_uint,
    details: *const c_char,
    watch: *mut c_void,
) {
    // SAFETY: libvirt passes what it was given in `register`, and strings; there may be no details.
    let (watch, event, details) = unsafe {
        let details = (!details.is_null()).then(|| CStr::from_ptr(details));
        (of(watch, domain), CStr::from_ptr(event), details)
    };
    let Some(watch) = watch else { return };
    match event.to_bytes() {
        b"POWERDOWN" => watch.ask_to_shut_down(),
        b"SHUTDOWN" => {
            if let Some(end) = details.and_then(|details| meaning(details.to_bytes())) {
                watch.set_cause(end);
            }
        }
        _ => {}
    }
}

/// What the details of a SHUTDOWN say (QMP's `ShutdownCause`), where that is more than libvirt says.
fn meaning(details: &[u8]) -> Option<MachineEnd> {
    let details: Value = serde_json::from_slice(details).ok()?;
    match details.get("reason")?.as_str()? {
        "guest-shutdown" => Some(MachineEnd::PoweredOff),
        "guest-reset" | "host-qmp-system-reset" => Some(MachineEnd::Reset),
        "guest-panic" => Some(MachineEnd::Panicked),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_that_are_known_say_more() {
        let of =
            |reason: &str| meaning(format!(r#"{{"guest":true,"reason":"{reason}"}}"#).as_bytes());
        assert_eq!(of("guest-shutdown"), Some(MachineEnd::PoweredOff));
        assert_eq!(of("guest-reset"), Some(MachineEnd::Reset));
        assert_eq!(of("host-qmp-system-reset"), Some(MachineEnd::Reset));
        assert_eq!(of("guest-panic"), Some(MachineEnd::Panicked));
        assert_eq!(of("host-signal"), None);
        for unknown in ["", "{}", "[]", r#"{"reason": 1}"#] {
            assert_eq!(meaning(unknown.as_bytes()), None);
        }
    }
}
