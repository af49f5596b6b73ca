//! What the tests share: where they run, how a run is put together, what it left.

pub(crate) mod cloud;
pub(crate) mod courier;
pub(crate) mod daemon;
mod job;
pub(crate) mod machine;
pub(crate) mod metadata;
pub(crate) mod moto;
pub(crate) mod processes;
mod rules;
mod running;
pub(crate) mod site;
pub(crate) mod tools;

pub(crate) use self::job::{Input, Job, Run};
pub(crate) use self::running::{Done, Running};
pub(crate) use self::site::{boot_disk, debian_image, site, sysv_disk, Backend, Site};

use std::time::{Duration, Instant};

/// The channel that the tests are run with.
pub(crate) fn channel() -> String {
    std::env::var("APPPOT_TEST_CHANNEL").unwrap_or_else(|_| String::from("auto"))
}

/// Whether files are copied: by it, or into a cloud.
pub(crate) fn copies_files() -> bool {
    let is_far = site().is_some_and(|site| site.backend == Backend::Ec2);
    is_far || matches!(channel().as_str(), "link" | "disk")
}

/// Makes the guest's kernel panic: memory runs out, and it has been told not to bear that. To be run
/// with [`PANIC_OPTIONS`].
pub(crate) const PANIC: &str = "echo 2 >/proc/sys/vm/panic_on_oom; tail /dev/zero; sleep 100";
pub(crate) const PANIC_OPTIONS: [&str; 3] = ["--root", "--memory", "128M"];

/// What takes longer than this will not happen; on a busy machine everything takes its time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; panics with `what` when it does not.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(succeeds(condition), "not within {PATIENCE:?}: {what}");
}

/// Waits until `condition` holds; whether it did.
pub(crate) fn succeeds(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Reproducible bytes of every value.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
