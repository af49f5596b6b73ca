//! Device files, which come up by and by.

use std::path::Path;
use std::time::{Duration, Instant};

/// A device that has not come up in this time will not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `path`, when it is one of a device, is there: drivers find some devices while the boot
/// goes on. Whoever opens it then says what is wrong.
pub(crate) fn wait_for(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while path.starts_with("/dev") && !path.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_or_no_device_is_not_waited_for() {
        let start = Instant::now();
        wait_for(Path::new("/dev/null"));
        wait_for(Path::new("share0"));
        wait_for(Path::new("/proc/self/fd/999"));
        assert!(start.elapsed() < PATIENCE);
    }
}
