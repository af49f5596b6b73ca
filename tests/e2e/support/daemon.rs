//! libvirt's daemons for the tests, as an ordinary user and without systemd.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{eventually, processes, tools, Site};

/// The daemon of the user's session, with this runtime directory. It is below a shell that adopts and
/// reaps the machines, as init would: they are nobody's orphans then. The shell's process.
pub(crate) fn start(site: &Site, runtime: &Path) -> Result<u32, String> {
    let libvirtd = tools::find("libvirtd").ok_or("there is no libvirtd: install libvirt-daemon")?;
    let virtlogd = tools::find("virtlogd").ok_or("there is no virtlogd: install libvirt-daemon")?;
    let mut command = Command::new("/bin/sh");
    // It goes by itself when nobody is connected: should this process be killed.
    command
        .args(["-c", "\"$0\" --timeout=30 & \"$1\" --timeout=30 & wait"])
        .args([virtlogd, libvirtd])
        .env_clear()
        .env("PATH", site.search_path())
        .env("HOME", site.stage.join("home"))
        .env("XDG_RUNTIME_DIR", runtime)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let user = site.is_root.then(|| site.user.clone());
    // SAFETY: only async-signal-safe calls.
    unsafe {
        command.pre_exec(move || {
            if let Some(user) = &user {
                let failed = libc::setgroups(user.groups.len(), user.groups.as_ptr()) != 0
                    || libc::setgid(user.gid) != 0
                    || libc::setuid(user.uid) != 0;
                if failed {
                    return Err(std::io::Error::last_os_error());
                }
            }
            libc::setsid();
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
            Ok(())
        });
    }
    let child = processes::spawn(&mut command).map_err(|error| error.to_string())?;
    eventually("libvirt's daemons listen", || {
        ["libvirt-sock", "virtlogd-sock"]
            .iter()
            .all(|socket| runtime.join("libvirt").join(socket).exists())
    });
    Ok(child.id())
}

/// Ends the site's daemons.
pub(super) fn stop(site: &Site) {
    if site.daemon.is_some() {
        end(&site.stage.join("runtime"));
    }
}

/// Ends the daemons with this runtime directory, by the numbers that they have written down.
pub(crate) fn end(runtime: &Path) {
    for name in ["libvirtd.pid", "virtlogd.pid"] {
        if let Some(pid) = pid(&runtime.join("libvirt").join(name)) {
            // SAFETY: no pointers; the daemon is ours.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }
    std::thread::sleep(Duration::from_millis(300));
}

fn pid(path: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok()?;
    text.trim().parse().ok().filter(|&pid| pid > 1)
}

/// The libvirtd with this runtime directory.
pub(crate) fn libvirtd(runtime: &Path) -> i32 {
    pid(&runtime.join("libvirt/libvirtd.pid")).expect("libvirtd runs")
}

/// QEMU's processes that run a launcher's machine, which is named after it.
pub(crate) fn guests(daemon: u32, launcher: u32) -> Vec<u32> {
    let named = format!("guest=apppot-{launcher},");
    let is_named = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&named)
    };
    let below = processes::descendants(daemon);
    below.into_iter().filter(is_named).collect()
}

/// `virsh` on the session with this runtime directory, as the user.
pub(crate) fn virsh(site: &Site, runtime: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("virsh");
    processes::as_user(&mut command, site);
    command
        .args(["-q", "-c", "qemu:///session"])
        .args(args)
        .env("HOME", site.stage.join("home"))
        .env("XDG_RUNTIME_DIR", runtime);
    command
}
