//! Processes: ours, and those that must not be left.

use std::collections::HashSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Site;

/// Every child that was started here. Whatever else is a child of ours has lost its parent.
static OWN: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

/// Processes whose parent ends become our children, where they can be seen.
pub(crate) fn adopt_orphans() {
    // SAFETY: prctl with plain numbers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Starts `command`, which is not an orphan then.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    own.get_or_insert_default().insert(child.id());
    Ok(child)
}

/// As `Command::output`.
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.wait_with_output().unwrap()
}

/// Drops root's rights in the child, and ends it with the thread that starts it.
pub(crate) fn as_user(command: &mut Command, site: &Site) {
    let (is_root, user) = (site.is_root, site.user.clone());
    // SAFETY: only async-signal-safe calls.
    unsafe {
        command.pre_exec(move || {
            if is_root {
                let failed = libc::setgroups(user.groups.len(), user.groups.as_ptr()) != 0
                    || libc::setgid(user.gid) != 0
                    || libc::setuid(user.uid) != 0;
                if failed {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    end_with_thread(command);
}

/// Ends the child with the thread that starts it, and so with this process however that ends.
pub(crate) fn end_with_thread(command: &mut Command) {
    // SAFETY: an async-signal-safe call.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// From now on open(2) has no `O_TMPFILE`, in children too. Async-signal-safe.
pub(crate) fn refuse_unnamed_files() -> io::Result<()> {
    const UNNAMED: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32;
    const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32;
    let (is, jump) = (libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_JMP | libc::BPF_JA);
    // struct seccomp_data: the call's number at 0, its arguments from 16 on.
    filter(&mut [
        step(LOAD, 0, 0, 0),
        step(is, libc::SYS_openat as u32, 0, 2),
        step(LOAD, 32, 0, 0),
        step(jump, 2, 0, 0),
        step(is, libc::SYS_open as u32, 0, 3),
        step(LOAD, 24, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET, UNNAMED, 0, 1),
        step(libc::BPF_RET, REFUSED, 0, 0),
        step(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0, 0),
    ])
}

/// Lets flock(2) fail, as on a filesystem that has no locks. Only async-signal-safe calls.
pub(crate) fn refuse_locks() -> io::Result<()> {
    const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOLCK as u32;
    let is = libc::BPF_JMP | libc::BPF_JEQ;
    filter(&mut [
        step(LOAD, 0, 0, 0),
        step(is, libc::SYS_flock as u32, 0, 1),
        step(libc::BPF_RET, REFUSED, 0, 0),
        step(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0, 0),
    ])
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;

/// One step of a filter.
fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Filters the system calls of this process and those that it starts.
fn filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program is alive during the call, which copies it.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) != 0
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// One line of /proc/PID/stat: parent and state.
fn stat(pid: u32) -> Option<(u32, char)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes below `ancestor`.
pub(crate) fn descendants(ancestor: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = all()
        .into_iter()
        .filter_map(|pid| stat(pid).map(|(parent, _)| (pid, parent)))
        .collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while next < found.len() {
        let of = found[next];
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| *parent == of)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.split_off(1)
}

/// What `pid` executes.
pub(crate) fn executable(pid: u32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// A field of /proc/PID/status.
pub(crate) fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Orphans that live: children of ours that nobody here has started.
fn orphans() -> Vec<u32> {
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let us = std::process::id();
    let mut alive = Vec::new();
    for pid in all() {
        let is_own = own.as_ref().is_some_and(|own| own.contains(&pid));
        match stat(pid) {
            Some((parent, 'Z')) if parent == us && !is_own => {
                // SAFETY: waitpid may write no status.
                unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::WNOHANG) };
            }
            Some((parent, _)) if parent == us && !is_own => alive.push(pid),
            _ => {}
        }
    }
    alive
}

/// Panics when a process that has lost its parent does not end.
pub(crate) fn assert_no_orphans() {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let left = orphans();
        if left.is_empty() {
            return;
        }
        if Instant::now() > end {
            let describe = |pid: &u32| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                format!(
                    "{pid} {:?} {}",
                    executable(*pid),
                    String::from_utf8_lossy(&command)
                )
            };
            let list: Vec<String> = left.iter().map(describe).collect();
            for pid in &left {
                // SAFETY: a child of ours, so the number is not somebody else's.
                unsafe { libc::kill(*pid as i32, libc::SIGKILL) };
            }
            panic!("processes were left: {list:#?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
