//! The end: processes, filesystems, the report, power-off. In this order, so that when the
//! launcher has the report everything is in its place.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use apppot_contract::link::Frame;
use apppot_contract::{Channel, Report, CHANNELS};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::reboot::{reboot, RebootMode};

use crate::link::Link;
use crate::process::{self, Waited};

/// Ends the machine.
pub(crate) fn end(link: Option<Link>, report: &Report) -> ! {
    end_processes(Duration::ZERO);
    // Shares have been written back with the report.
    detach_filesystems(&["ext4", "ext3", "ext2", "xfs", "btrfs"]);
    self::report(link, report);
    power_off();
    // PID 1 must not return: the kernel would panic, which the launcher sees as well.
    std::process::abort()
}

/// Tells the launcher how it ended; without a link, whoever reads the console.
pub(crate) fn report(link: Option<Link>, report: &Report) {
    match link {
        Some(mut link) => {
            // The launcher may be gone; the machine still ends.
            if link.send(&Frame::Report(&report.encode())).is_ok() {
                wait_until_taken(&mut link);
            }
        }
        None => eprintln!("apppot-init: {:?}", report.outcome),
    }
}

/// A launcher that has not taken the report in this time will not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the launcher has the report. What a machine has sent and nobody has read can be lost when it
/// powers off: QEMU keeps no more of it than its socket takes.
fn wait_until_taken(link: &mut Link) {
    let end = Instant::now() + PATIENCE;
    loop {
        loop {
            match link.next() {
                Ok(Some(Frame::Shutdown)) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => break,
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout) != Ok(1) || link.read().is_err() {
            return;
        }
    }
}

/// Powers off. Returns only when the kernel cannot.
pub(crate) fn power_off() {
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

/// Asks all other processes to end, and ends them after `grace`.
pub(crate) fn end_processes(grace: Duration) {
    if !others_exist() {
        return;
    }
    let patience = Instant::now() + grace;
    signal_all(libc::SIGTERM);
    while Instant::now() < patience {
        if !others_exist() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    signal_all(libc::SIGKILL);
    // Killed processes end soon, but for one that hangs in the kernel: no reason to hang with it.
    let patience = Instant::now() + Duration::from_secs(2);
    while others_exist() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reaps what has ended; whether anything is left. Every orphan is PID 1's child.
fn others_exist() -> bool {
    loop {
        match process::wait_any() {
            Waited::Ended(..) => {}
            Waited::Running => return true,
            Waited::Nobody => return false,
        }
    }
}

fn signal_all(signal: libc::c_int) {
    // SAFETY: kill takes no pointers; -1 spares PID 1 itself.
    unsafe { libc::kill(-1, signal) };
}

/// Writes back and lets go of the host's directories.
pub(crate) fn detach_shares() {
    detach_filesystems(&CHANNELS.map(Channel::word));
}

/// Writes back and lets go of every writable filesystem of these types: they hold what is the
/// user's.
fn detach_filesystems(types: &[&str]) {
    // The kernel says no length: room for all of it saves reads that ask for a little more each.
    let mut table = String::with_capacity(8 << 10);
    let read = File::open("/proc/mounts").and_then(|mut file| file.read_to_string(&mut table));
    if read.is_err() {
        nix::unistd::sync();
        return;
    }
    let _ = std::env::set_current_dir("/");
    for line in table.lines().rev() {
        let mut fields = line.split(' ').skip(1);
        let (Some(target), Some(filesystem), Some(options)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let writable = options.split(',').any(|option| option == "rw");
        if writable && types.contains(&filesystem) {
            let_go(&unescape(target));
        }
    }
}

/// The root cannot be unmounted: read-only is as clean.
fn let_go(target: &[u8]) {
    let path = std::path::PathBuf::from(std::ffi::OsStr::new(
        <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target),
    ));
    if target == b"/" || umount2(&path, MntFlags::empty()).is_err() {
        nix::unistd::sync();
        let none: Option<&str> = None;
        let _ = mount(
            none,
            &path,
            none,
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            none,
        );
    }
}

/// Undoes the octal escapes of /proc/mounts.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 4 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\012c"), b"/a b\nc");
        assert_eq!(unescape(r"/a\x"), br"/a\x");
        assert_eq!(unescape(r"/\134"), b"/\\");
    }
}
