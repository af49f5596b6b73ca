//! The guest's clock. A kernel counts time from its start on, and where a processor is translated and its
//! host busy it miscounts by seconds before it has found a good clock source; the hardware clock
//! has the host's time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{clock_settime, ClockId};

/// `struct rtc_time` (linux/rtc.h): the start of C's `struct tm`.
#[repr(C)]
#[derive(Debug, Default)]
struct RtcTime {
    seconds: libc::c_int,
    minutes: libc::c_int,
    hours: libc::c_int,
    day: libc::c_int,
    month: libc::c_int,
    year: libc::c_int,
    unused: [libc::c_int; 3],
}

nix::ioctl_read!(
    /// `RTC_RD_TIME` (rtc(4)).
    read_time,
    b'p',
    0x09,
    RtcTime
);

/// What the hardware clock counts in.
const SECOND: Duration = Duration::from_secs(1);

/// Sets the clock by the hardware clock, where there is one and they differ by more than its precision: to a time
/// that is not ahead of the host's, for a job must not end before its deadline. What fails only leaves the clock as
/// it is.
pub(crate) fn set() {
    if let Some(time) = hardware_clock().ok().and_then(|time| seconds(&time)) {
        if let Some(time) = correction(SystemTime::now(), time) {
            let _ = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time));
        }
    }
}

fn hardware_clock() -> io::Result<RtcTime> {
    let device = File::open("/dev/rtc0")?;
    let mut time = RtcTime::default();
    // SAFETY: the call writes a structure of this layout.
    unsafe { read_time(device.as_raw_fd(), &mut time) }?;
    Ok(time)
}

/// Seconds since the epoch.
fn seconds(time: &RtcTime) -> Option<u64> {
    // SAFETY: an all-zero tm is a valid value.
    let mut fields: libc::tm = unsafe { std::mem::zeroed() };
    fields.tm_sec = time.seconds;
    fields.tm_min = time.minutes;
    fields.tm_hour = time.hours;
    fields.tm_mday = time.day;
    fields.tm_mon = time.month;
    fields.tm_year = time.year;
    // SAFETY: the fields are plain numbers, of any value.
    u64::try_from(unsafe { libc::timegm(&mut fields) }).ok()
}

/// What the clock is to be set to, in time since the epoch; `None` when it is right.
fn correction(now: SystemTime, hardware: u64) -> Option<Duration> {
    let hardware = Duration::from_secs(hardware);
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let is_right = (hardware..hardware + SECOND).contains(&now);
    (!is_right).then_some(hardware)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hardware_clocks_fields_are_a_time() {
        let time = RtcTime {
            seconds: 7,
            minutes: 31,
            hours: 22,
            day: 22,
            month: 10,
            year: 126,
            unused: [0; 3],
        };
        assert_eq!(seconds(&time), Some(1_795_386_667));
        let before = RtcTime {
            year: 60,
            day: 1,
            ..RtcTime::default()
        };
        assert_eq!(seconds(&before), None);
    }

    #[test]
    fn only_a_clock_that_is_wrong_is_set() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        for right in [100_000, 100_500, 100_999] {
            assert_eq!(correction(at(right), 100), None);
        }
        for wrong in [95_000, 99_999, 101_000, 109_000] {
            assert_eq!(correction(at(wrong), 100), Some(Duration::from_secs(100)));
        }
    }
}
