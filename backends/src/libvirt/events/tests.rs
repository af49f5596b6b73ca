//! On libvirt's own pretended hypervisor, which starts and ends domains and says so.

use std::time::{Duration, Instant};

use virt::domain::Domain;

use super::*;
use crate::libvirt::place::uuid;
use crate::process::wait_readable;

/// A domain that runs, and its watch.
fn running() -> (Listening, Domain, Arc<Watch>) {
    start_loop().unwrap();
    let connect = Connect::open(Some("test:///default")).unwrap();
    let connection = Arc::new(Connection::of(connect).unwrap());
    let uuid = uuid().unwrap();
    let (watch, _) = Watch::new(&uuid).unwrap();
    let listening = Listening::start(Arc::clone(&connection), &watch).unwrap();
    let xml = format!(
        "<domain type='test'><name>job-{uuid}</name><uuid>{uuid}</uuid><memory>1024</memory>\
         <os><type>hvm</type></os></domain>"
    );
    let domain = Domain::create_xml(connection.handle(), &xml, 0).unwrap();
    (listening, domain, watch)
}

fn wait(watch: &Watch) -> Option<MachineEnd> {
    let until = Instant::now() + Duration::from_secs(30);
    assert!(wait_readable(watch.ended(), Some(until)).unwrap());
    watch.end()
}

#[test]
fn what_others_destroy_is_heard_of() {
    let (_connection, domain, watch) = running();
    assert_eq!(watch.end(), None);
    domain.destroy().unwrap();
    assert_eq!(wait(&watch), Some(MachineEnd::Destroyed));
}

#[test]
fn what_powers_off_is_heard_of() {
    let (_connection, domain, watch) = running();
    domain.shutdown().unwrap();
    assert_eq!(wait(&watch), Some(MachineEnd::ShutDown));
}

#[test]
fn the_end_of_others_is_not_ours() {
    let (_first, ours, watch) = running();
    let (_second, others, unrelated) = running();
    ours.destroy().unwrap();
    assert_eq!(wait(&watch), Some(MachineEnd::Destroyed));
    assert_eq!(unrelated.end(), None);
    others.destroy().unwrap();
    assert_eq!(wait(&unrelated), Some(MachineEnd::Destroyed));
}

#[test]
fn how_it_stopped_says_what_happened() {
    use MachineEnd::{Destroyed, Died, Panicked, ShutDown};
    for (detail, end) in [
        (sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, ShutDown),
        (sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED, Destroyed),
        (sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED, Panicked),
        (sys::VIR_DOMAIN_EVENT_STOPPED_FAILED, Died),
    ] {
        assert_eq!(stopped(detail), end, "{detail}");
    }
}

#[test]
fn who_does_not_listen_any_more_keeps_nothing() {
    let (listening, domain, watch) = running();
    let connection = Arc::clone(&listening.connection);
    // The pretended hypervisor takes close callbacks, and forgets them.
    let kept = Arc::strong_count(&watch) - 1;
    drop(listening);
    let end = Instant::now() + Duration::from_secs(30);
    while Arc::strong_count(&watch) > kept {
        assert!(Instant::now() < end, "callbacks are still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    domain.destroy().unwrap();
    drop(domain);
    assert_eq!(watch.end(), None);
    // Nobody else has it: libvirt closes it for good.
    let mut another = connection.handle().clone();
    drop(connection);
    assert_eq!(another.close(), Ok(0));
}

#[test]
fn what_was_heard_first_holds() {
    let (watch, _) = Watch::new("").unwrap();
    watch.set_end(MachineEnd::Destroyed);
    watch.set_end(MachineEnd::Disconnected);
    assert_eq!(watch.end(), Some(MachineEnd::Destroyed));
}
