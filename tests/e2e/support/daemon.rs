//! libvirt's daemons for the tests, as an ordinary user and without systemd.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::site::User;
use super::{eventually, processes, tools, Site};

/// The daemon of the user's session, with this runtime directory. It is below a shell that adopts and
/// reaps the machines, as init would: they are nobody's orphans then. The shell's process.
pub(crate) fn start(site: &Site, runtime: &Path) -> Result<u32, String> {
    start_with(site, runtime, "")
}

/// As [`start`], with these lines of configuration.
pub(crate) fn start_with(site: &Site, runtime: &Path, lines: &str) -> Result<u32, String> {
    let libvirtd = tools::find("libvirtd").ok_or("there is no libvirtd: install libvirt-daemon")?;
    let config = runtime.join("libvirtd.conf");
    std::fs::write(&config, lines).map_err(|error| error.to_string())?;
    site.give(&config);
    let own = write_qemu_conf(site, &runtime.join("libvirt"));
    own.map_err(|error| error.to_string())?;
    let mut command = Command::new("/bin/sh");
    // It goes by itself when nobody is connected: should this process be killed.
    command
        .args(["-c", "\"$0\" -f \"$1\" --timeout=300 & wait"])
        .args([libvirtd, config])
        .env_clear()
        .env("XDG_CONFIG_HOME", runtime)
        .env("PATH", site.search_path())
        .env("HOME", site.stage.join("home"))
        .env("XDG_RUNTIME_DIR", runtime)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    adopts_as(&mut command, site.is_root.then(|| site.user.clone()));
    let child = processes::spawn(&mut command).map_err(|error| error.to_string())?;
    let socket = runtime.join("libvirt/libvirt-sock");
    eventually("libvirt's daemon listens", || socket.exists());
    Ok(child.id())
}

/// A script of root's that starts a daemon of the user's session with this runtime directory. It ends with the
/// script's process.
pub(super) fn in_network(site: &Site, runtime: &Path) -> String {
    write_qemu_conf(site, &runtime.join("libvirt")).unwrap();
    let libvirtd = tools::find("libvirtd").expect("libvirtd (libvirt-daemon)");
    let (uid, gid, runtime) = (site.user.uid, site.user.gid, runtime.display());
    let user = match site.is_root {
        true => format!("--reuid {uid} --regid {gid} --clear-groups"),
        false => String::new(),
    };
    format!(
        "XDG_CONFIG_HOME='{runtime}' setpriv {user} --pdeathsig KILL '{}' -f /dev/null >/dev/null 2>&1 &\n\
         until [ -S '{runtime}/libvirt/libvirt-sock' ]; do sleep 0.05; done",
        libvirtd.display()
    )
}

/// QEMU's words go to files: no daemon that is there for them, comes by itself and stays for a while.
fn write_qemu_conf(site: &Site, directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("qemu.conf"), "stdio_handler = \"file\"\n")?;
    site.give(directory);
    Ok(())
}

/// Has a command adopt the machines, perhaps as another user.
fn adopts_as(command: &mut Command, user: Option<User>) {
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
}

/// Where nothing of this host's libvirt is seen: a daemon of the system with directories of its own, whose QEMU would
/// be neither root nor the caller. What it keeps is closed to others, as Debian has it. It does not start without the
/// user that Debian's package for the system's daemon makes, whoever QEMU is to be: there is one here.
const SYSTEM: &str = r#"set -e
mount --make-rprivate /
for directory in /etc/libvirt /var/lib/libvirt /run/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$directory"
    mount -t tmpfs -o mode=755 none "$directory"
done
mount --bind "$2" /var/cache/libvirt
for file in passwd group; do
    cp "/etc/$file" "/run/libvirt/$file"
    mount --bind "/run/libvirt/$file" "/etc/$file"
done
getent passwd libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
getent group libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:' >>/etc/group
install -d -m 750 -o nobody -g nogroup /var/lib/libvirt/qemu
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$1"
unix_sock_rw_perms = "0777"
auth_unix_rw = "none"
END
cat >/etc/libvirt/qemu.conf <<END
user = "nobody"
group = "nogroup"
stdio_handler = "file"
cgroup_controllers = [ ]
END
"$0" -p "$1/libvirtd.pid" --timeout=30 &
wait
"#;

/// A daemon of the system's with its socket in `directory`: its URI, and the process below which its machines are.
pub(crate) fn start_system(site: &Site, directory: &Path) -> Result<(String, u32), String> {
    let libvirtd = tools::find("libvirtd").ok_or("there is no libvirtd: install libvirt-daemon")?;
    // What it knows of QEMU: that takes many seconds to find out.
    let known = site.stage.join("known");
    std::fs::create_dir_all(&known).map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", SYSTEM])
        .args([&libvirtd, directory, &known])
        .env_clear()
        .env("PATH", site.search_path())
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    adopts_as(&mut command, None);
    let child = processes::spawn(&mut command).map_err(|error| error.to_string())?;
    let socket = directory.join("libvirt-sock");
    eventually("the system's libvirtd listens", || socket.exists());
    let uri = format!("qemu:///system?socket={}", socket.display());
    Ok((uri, child.id()))
}

/// Ends a daemon of [`start_system`].
pub(crate) fn end_system(directory: &Path) {
    if let Some(pid) = pid(&directory.join("libvirtd.pid")) {
        // SAFETY: no pointers; the daemon is ours.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    std::thread::sleep(Duration::from_millis(300));
}

/// Ends the site's daemons.
pub(super) fn stop(site: &Site) {
    if site.daemon.is_some() {
        end(&site.stage.join("runtime"));
    }
}

/// Ends the daemons with this runtime directory, by the numbers that they have written down: libvirtd, and virtlogd if
/// that has asked for one.
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
    virsh_at("qemu:///session", site, runtime, args)
}

/// `virsh` on the daemon at `uri`.
pub(crate) fn virsh_at(uri: &str, site: &Site, runtime: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("virsh");
    processes::as_user(&mut command, site);
    command
        .args(["-q", "-c", uri])
        .args(args)
        .env("HOME", site.stage.join("home"))
        .env("XDG_RUNTIME_DIR", runtime);
    command
}
