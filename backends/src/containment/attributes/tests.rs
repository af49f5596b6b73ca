//! A forked process behind the filter tries to change attributes.

#![allow(clippy::undocumented_unsafe_blocks)] // Raw calls, on arguments that live during the call.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::containment::filter::Filter;

/// The number that the writable directory has in the forked process.
const NUMBER: RawFd = 990;

struct Place {
    whole: tempfile::TempDir,
    inside: OwnedFd,
}

impl Place {
    /// `in/` with `file`, a `link` to the file `out` beside it, and a `swapped` link to `.`; `into` beside it.
    fn new() -> Self {
        let whole = tempfile::tempdir().unwrap();
        let path = |name: &str| whole.path().join(name);
        fs::create_dir(path("in")).unwrap();
        fs::create_dir(path("into")).unwrap();
        for name in ["in/file", "into/file", "out"] {
            fs::write(path(name), "content").unwrap();
            let mode = fs::Permissions::from_mode(0o644);
            fs::set_permissions(path(name), mode).unwrap();
        }
        symlink(path("out"), path("in/link")).unwrap();
        symlink("..", path("in/up")).unwrap();
        let inside = File::open(path("in")).unwrap().into();
        Place { whole, inside }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.whole.path().join(name)
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }

    /// What `calls` give in a supervised process: 0 or an error's number each.
    fn supervised<const N: usize>(&self, calls: [&dyn Fn() -> libc::c_long; N]) -> [i32; N] {
        let filter = Filter::new(true).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let (mut read, mut write) = (File::from(read), File::from(write));
        // SAFETY: the child makes only system calls on values that are prepared.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                // SAFETY: as above.
                unsafe {
                    libc::dup2(self.inside.as_raw_fd(), NUMBER);
                    libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                    filter.enter();
                    for call in calls {
                        let error = match call() {
                            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
                            _ => 0,
                        };
                        let _ = write.write_all(&error.to_ne_bytes());
                    }
                    libc::_exit(0);
                }
            }
            nix::unistd::ForkResult::Parent { child } => {
                drop(write);
                let listener = loop {
                    match filter.listener() {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        listener => break listener.unwrap(),
                    }
                };
                // SAFETY: the result is a new descriptor.
                let process = unsafe {
                    let fd = libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0);
                    OwnedFd::from_raw_fd(fd as RawFd)
                };
                let writable = vec![(NUMBER, self.inside.try_clone().unwrap())];
                Supervisor::start(listener, process, writable).unwrap();
                let results = [(); N].map(|()| {
                    let mut error = [0; 4];
                    read.read_exact(&mut error).unwrap();
                    i32::from_ne_bytes(error)
                });
                nix::sys::wait::waitpid(child, None).unwrap();
                results
            }
        }
    }
}

fn text(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

fn below(name: &str) -> CString {
    text(format!("//proc/self/fd/{NUMBER}{name}"))
}

fn chmod(path: &CString) -> libc::c_long {
    // SAFETY: a path that lives during the call.
    libc::c_long::from(unsafe { libc::chmod(path.as_ptr(), 0o4711) })
}

fn open(path: &CString, flags: libc::c_int) -> RawFd {
    // SAFETY: a path that lives during the call.
    unsafe { libc::open(path.as_ptr(), flags) }
}

fn fchmod(path: &CString, flags: libc::c_int) -> libc::c_long {
    // SAFETY: a descriptor of the process's own.
    libc::c_long::from(unsafe { libc::fchmod(open(path, flags), 0o600) })
}

#[test]
fn modes_change_inside_and_nowhere_else() {
    let place = Place::new();
    let file = below("/file");
    let elsewhere = [
        text(place.path("out")),
        text(place.path("in/file")),
        below("/link"),
        below("/../out"),
        below("/../into/file"),
        below("/up/out"),
        below("o/file"),
        text(format!("/proc/self/fd/{}/file", NUMBER + 1)),
        text("/proc/self/fd/-1/file"),
        text(""),
    ];
    assert_eq!(place.supervised([&|| chmod(&file)]), [0]);
    assert_eq!(place.mode("in/file"), 0o4711);
    for path in &elsewhere {
        let [error] = place.supervised([&|| chmod(path)]);
        assert_ne!(error, 0, "{path:?}");
    }
    assert_eq!(place.mode("out"), 0o644);
    assert_eq!(place.mode("into/file"), 0o644);
    assert_eq!(place.mode("in/file"), 0o4711);
}

#[test]
fn descriptors_lead_nowhere_else() {
    let place = Place::new();
    let (file, into) = (text(place.path("in/file")), text(place.path("into/file")));
    let (missing, null) = (text("/does/not/exist"), text("/dev/null"));
    let errors = place.supervised([
        &|| fchmod(&file, libc::O_RDONLY),
        &|| fchmod(&into, libc::O_RDONLY),
        &|| fchmod(&missing, libc::O_RDONLY),
        &|| open(&into, libc::O_ACCMODE).into(),
        &|| fchmod(&null, libc::O_RDWR),
    ]);
    let refused = libc::EPERM;
    assert_eq!(errors, [0, refused, libc::EBADF, refused, refused]);
    assert_eq!(place.mode("in/file"), 0o600);
    assert_eq!(place.mode("into/file"), 0o644);
    // Landlock decides on what is opened for writing.
    assert_eq!(place.supervised([&|| fchmod(&into, libc::O_WRONLY)]), [0]);
    assert_eq!(place.mode("into/file"), 0o600);
}

#[test]
fn times_and_owners_and_sizes_are_set() {
    let place = Place::new();
    let (file, link, out) = (below("/file"), below("/link"), text(place.path("out")));
    let micro =
        [(1_000_000, 5), (2_000_000, 7)].map(|(tv_sec, tv_usec)| libc::timeval { tv_sec, tv_usec });
    let nano = [(3, 33), (4, 44)].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });

    let utimes = |path: &CString| unsafe { libc::utimes(path.as_ptr(), micro.as_ptr()) }.into();
    let utimens = |path: &CString| {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), nano.as_ptr(), flags) }.into()
    };
    let chown = |path: &CString| unsafe { libc::chown(path.as_ptr(), u32::MAX, u32::MAX) }.into();
    let truncate = |path: &CString| unsafe { libc::truncate(path.as_ptr(), 3) }.into();
    assert_eq!(
        place.supervised([&|| utimes(&file), &|| chown(&file), &|| truncate(&file)]),
        [0; 3]
    );
    let changed = fs::metadata(place.path("in/file")).unwrap();
    assert_eq!(changed.size(), 3);
    assert_eq!(
        place.supervised([&|| utimes(&file), &|| utimens(&link)]),
        [0; 2]
    );
    let changed = fs::metadata(place.path("in/file")).unwrap();
    assert_eq!((changed.atime(), changed.atime_nsec()), (1_000_000, 5000));
    assert_eq!((changed.mtime(), changed.mtime_nsec()), (2_000_000, 7000));
    let link = fs::symlink_metadata(place.path("in/link")).unwrap();
    assert_eq!((link.mtime(), link.mtime_nsec()), (4, 44));
    let refused = [libc::EPERM; 3];
    assert_eq!(
        place.supervised([&|| utimes(&out), &|| chown(&out), &|| truncate(&out)]),
        refused
    );
    assert_eq!(fs::metadata(place.path("out")).unwrap().size(), 7);
}

#[test]
fn other_ways_are_closed() {
    let place = Place::new();
    let file = text(place.path("in/file"));
    let flags = 0;

    let errors = place.supervised([
        &|| unsafe { libc::syscall(libc::SYS_fchmodat, libc::AT_FDCWD, file.as_ptr(), 0o777) },
        &|| unsafe {
            libc::syscall(
                libc::SYS_setxattr,
                file.as_ptr(),
                c"user.x".as_ptr(),
                0,
                0,
                0,
            )
        },
        &|| unsafe { libc::ioctl(open(&file, libc::O_RDONLY), 0x4008_6602, &flags).into() },
        &|| unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) },
        &|| unsafe { libc::syscall(NEWEST_AND_MORE, 0, 0) },
        &|| unsafe { libc::syscall(0x4000_0000 | libc::SYS_chmod, file.as_ptr(), 0o777) },
        &|| unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).into() },
        &|| unsafe { libc::setsid().into() },
        &|| open(&file, libc::O_RDONLY | libc::O_TRUNC).into(),
        &|| open(&file, libc::O_ACCMODE | libc::O_TRUNC).into(),
        &|| open(&file, libc::O_WRONLY | libc::O_TRUNC).into(),
    ]);
    let [rest @ .., truncated] = errors;
    let (refused, missing) = (libc::EPERM, libc::ENOSYS);
    let mut expected = [refused; 10];
    expected[4..6].fill(missing);
    assert_eq!(rest, expected);
    assert_eq!(truncated, 0);
}

/// `file_setattr` of Linux 6.17.
const NEWEST_AND_MORE: libc::c_long = 469;
