//! A session on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::poll::{poll, PollFd, PollFlags};
use nix::pty::{openpty, OpenptyResult};
use nix::sys::termios::{tcgetattr, LocalFlags, Termios};

use crate::support::{eventually, processes, Job, Run, PANIC, PANIC_OPTIONS};

/// `apppot` on a terminal of its own, which we hold the other end of.
struct Session {
    child: Child,
    master: Option<File>,
    slave: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
    before: Termios,
    reader: Option<Reader>,
}

/// The thread that reads what the terminal shows, and what makes it end.
type Reader = (Arc<AtomicBool>, JoinHandle<()>);

fn read_in_background(mut master: File, seen: Arc<Mutex<Vec<u8>>>) -> Reader {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while !stopped.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, 20u16).unwrap() == 0 {
                continue;
            }
            match master.read(&mut buffer) {
                Ok(len @ 1..) => seen.lock().unwrap().extend_from_slice(&buffer[..len]),
                _ => return,
            }
        }
    });
    (stop, thread)
}

impl Session {
    fn start(run: &Run, rows: u16, columns: u16) -> Self {
        let OpenptyResult { master, slave } = openpty(&winsize(rows, columns), None).unwrap();
        for fd in [&master, &slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let master = File::from(master);
        let before = tcgetattr(&slave).unwrap();
        let mut command = run.command();
        command
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap());
        // SAFETY: only async-signal-safe calls.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = processes::spawn(&mut command).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let reader = read_in_background(master.try_clone().unwrap(), Arc::clone(&seen));
        Session {
            child,
            master: Some(master),
            slave,
            seen,
            before,
            reader: Some(reader),
        }
    }

    /// Closes the window: nothing of our end is left.
    fn hang_up(&mut self) {
        self.master = None;
        let (stop, reader) = self.reader.take().unwrap();
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn until_it_shows(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.text().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.master
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Changes the window's size, as a terminal emulator does.
    fn resize(&self, rows: u16, columns: u16) {
        let size = winsize(rows, columns);
        // SAFETY: TIOCSWINSZ reads a winsize.
        let result = unsafe {
            libc::ioctl(
                self.master.as_ref().unwrap().as_raw_fd(),
                libc::TIOCSWINSZ,
                &size,
            )
        };
        assert_eq!(result, 0);
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave)
            .unwrap()
            .local_flags
            .contains(LocalFlags::ECHO)
    }

    fn is_restored(&self) -> bool {
        tcgetattr(&self.slave).unwrap() == self.before
    }

    fn finish(&mut self) -> ExitStatus {
        let mut status = None;
        eventually(&format!("an end: {:?}", self.text()), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        processes::assert_no_orphans();
        status.unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn winsize(rows: u16, columns: u16) -> libc::winsize {
    libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn size_type_and_status() {
    let Some(job) = Job::new() else { return };
    let script = "stty size; test -t 0 && test -t 1 && test -t 2 && echo $TERM; exit 37";
    let run = job.sh(script).env("TERM", "xterm-test");
    let mut session = Session::start(&run, 33, 77);
    assert_eq!(session.finish().code(), Some(37));
    session.until_it_shows("33 77\r\nxterm-test\r\n");
    assert!(session.is_restored());
}

#[test]
fn a_resized_window() {
    let Some(job) = Job::new() else { return };
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut session = Session::start(&job.sh(script), 24, 80);
    session.until_it_shows("ready");
    session.resize(50, 132);
    session.until_it_shows("50 132");
    session.type_in("\x03");
    assert_eq!(session.finish().code(), Some(130));
    assert!(session.is_restored());
}

#[test]
fn keys_are_the_commands() {
    let Some(job) = Job::new() else { return };
    let script =
        "trap 'echo interrupted >got; exit 5' INT; echo ready; while :; do sleep 0.05; done";
    let mut session = Session::start(&job.sh(script), 24, 80);
    session.until_it_shows("ready");
    assert!(session.is_raw());
    session.type_in("\x03");
    assert_eq!(session.finish().code(), Some(5));
    assert_eq!(job.read("got"), "interrupted\n");
    assert!(session.is_restored());
}

#[test]
fn a_shell_with_line_editing_and_end_of_file() {
    let Some(job) = Job::new() else { return };
    let mut session = Session::start(&job.apppot(&["shell"]), 24, 80);
    session.type_in("echo $((6*7))-in-$PWD\n");
    session.until_it_shows(&format!("42-in-{}", job.path().display()));
    // The shell gives the terminal back before the command starts: what is typed earlier is its own.
    session.type_in("echo be''gun; cat\n");
    session.until_it_shows("begun\r\n");
    session.type_in("line typed\n");
    session.until_it_shows("line typed\r\nline typed\r\n");
    session.type_in("\x04");
    session.type_in("exit 6\n");
    assert_eq!(session.finish().code(), Some(6));
    assert!(session.is_restored());
}

#[test]
fn is_restored_when_the_launcher_is_killed() {
    let Some(job) = Job::new() else { return };
    let run = job.sh("echo ready; exec sleep 1000");
    let mut session = Session::start(&run, 24, 80);
    session.until_it_shows("ready");
    eventually("raw mode", || session.is_raw());
    session.child.kill().unwrap();
    assert_eq!(session.finish().signal(), Some(libc::SIGKILL));
    eventually("the terminal is restored", || session.is_restored());
}

#[test]
fn is_restored_when_the_machine_dies() {
    let Some(job) = Job::new() else { return };
    let mut session = Session::start(&job.sh(PANIC).with(&PANIC_OPTIONS), 24, 80);
    assert_eq!(session.finish().code(), Some(125));
    session.until_it_shows("panic");
    assert!(session.is_restored());
}

#[test]
fn that_goes_away_ends_the_job() {
    let Some(job) = Job::new() else { return };
    let script = "trap 'echo hung up >got; exit 3' HUP; echo ready; while :; do sleep 0.05; done";
    let mut session = Session::start(&job.sh(script), 24, 80);
    session.until_it_shows("ready");
    session.hang_up();
    session.finish();
    assert_eq!(job.read("got"), "hung up\n");
}

#[test]
fn by_option() {
    let Some(job) = Job::new() else { return };
    // Without a terminal on this side.
    job.sh("test -t 0 && echo terminal")
        .with(&["--tty"])
        .go()
        .exits(0)
        .shows(&["terminal"]);
    // Against the one on this side.
    let run = job.sh("test -t 0 || echo none").with(&["--no-tty"]);
    let mut session = Session::start(&run, 24, 80);
    session.until_it_shows("none");
    assert_eq!(session.finish().code(), Some(0));
}

#[test]
fn job_control_is_the_guests() {
    let Some(job) = Job::new() else { return };
    let mut session = Session::start(&job.apppot(&["shell"]), 24, 80);
    session.type_in("echo up-$((6*7))\n");
    session.until_it_shows("up-42");
    // The shell gives the terminal back before the command starts: what is typed earlier is its own.
    session.type_in("echo be''gun; cat\n");
    session.until_it_shows("begun\r\n");
    session.type_in("line typed\n");
    session.until_it_shows("line typed\r\nline typed\r\n");
    session.type_in("\x1a");
    // The launcher goes on, and the guest's shell has stopped its own job.
    session.until_it_shows("Stopped");
    session.type_in("echo there-$((6*7))\n");
    session.until_it_shows("there-42");
    session.type_in("kill %1; exit 4\n");
    session.until_it_shows("exit 4");
    session.type_in("exit 4\n");
    assert_eq!(session.finish().code(), Some(4));
    assert!(session.is_restored());
}
