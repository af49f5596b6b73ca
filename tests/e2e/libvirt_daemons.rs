//! libvirt's daemons: what they are asked for, how long they are waited for, and that of the system.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::site::refuse_to_skip;
use crate::support::{daemon, eventually, processes, site, Backend, Input, Job, Run, Site};

/// A job directory where machines are libvirt's.
fn job() -> Option<(Job, &'static Site)> {
    let site = site()?;
    match site.backend {
        Backend::Libvirt => Some((Job::new()?, site)),
        _ => None,
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: no pointers; the process is ours.
    unsafe { libc::kill(pid, signal) };
}

/// A launcher that is stopped answers nobody; this daemon takes that badly after two seconds, not thirty.
#[test]
fn a_stopped_launcher_keeps_its_machine() {
    let Some((job, site)) = job() else { return };
    let runtime = job.directory_beside("runtime");
    let impatient = "keepalive_interval = 1\nkeepalive_count = 1\n";
    daemon::start_with(site, &runtime, impatient).unwrap();
    let virsh = |args: &[&str]| {
        let output = processes::output(&mut daemon::virsh(site, &runtime, args));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let start = || {
        let run = job.sh("echo up; read line; echo got $line; cat");
        let run = run.env("XDG_RUNTIME_DIR", &runtime).input(Input::Open);
        run.with(&["--id", "stopped"]).limit(120).start()
    };
    let stop = |pid: u32| {
        signal(pid as i32, libc::SIGSTOP);
        std::thread::sleep(Duration::from_secs(6));
        assert!(virsh(&["list", "--name"]).contains("stopped"));
        signal(pid as i32, libc::SIGCONT);
    };
    // Twice: it listens anew.
    let mut running = start();
    running.until_it_prints("up");
    stop(running.pid());
    running.type_in("after\n");
    running.until_it_prints("got after");
    stop(running.pid());
    running.end_input();
    running.finish().exits(0).prints("up\ngot after\n");
    // What is done to the machine then is heard, and what was done meanwhile is noticed.
    for is_stopped in [false, true] {
        let running = start();
        running.until_it_prints("up");
        stop(running.pid());
        if is_stopped {
            signal(running.pid() as i32, libc::SIGSTOP);
            std::thread::sleep(Duration::from_secs(6));
        } else {
            // Listening anew takes its time.
            std::thread::sleep(Duration::from_secs(2));
        }
        virsh(&["destroy", "stopped"]);
        signal(running.pid() as i32, libc::SIGCONT);
        let why = match is_stopped {
            true => "while the launcher was stopped",
            false => "destroyed by someone else",
        };
        running.finish().exits(125).says(&[why]);
    }
    daemon::end(&runtime);
}

#[test]
fn a_daemon_that_hangs_is_not_waited_for() {
    let Some((job, site)) = job() else { return };
    let runtime = job.directory_beside("runtime");
    let shell = daemon::start(site, &runtime).unwrap();
    let daemon = daemon::libvirtd(&runtime);
    let run = |script| {
        let run = job.sh(script).env("XDG_RUNTIME_DIR", &runtime);
        run.limit(300)
    };
    // One that begins to hang when the machine runs is not needed to end it.
    let [running, killed] = [(); 2].map(|()| run("echo up; exec sleep 600").start());
    running.until_it_prints("up");
    killed.until_it_prints("up");
    signal(daemon, libc::SIGSTOP);
    let left = || daemon::guests(shell, killed.pid());
    assert_eq!(left().len(), 1);
    killed.signal(libc::SIGKILL);
    eventually("QEMU is gone", || left().is_empty());
    assert_eq!(killed.finish().signal(), Some(libc::SIGKILL));
    let interrupted = run("touch ran").start();
    std::thread::sleep(Duration::from_secs(2));
    interrupted.signal(libc::SIGINT);
    assert_eq!(interrupted.finish().signal(), Some(libc::SIGINT));
    let done = run("touch ran").go().exits(125);
    done.says(&["does not answer", "hint: ", "daemon"]);
    let doctor = job.apppot(&["doctor"]).env("XDG_RUNTIME_DIR", &runtime);
    doctor.limit(120).go().exits(0).shows(&["does not answer"]);
    assert!(!job.has("ran"));
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().code(), Some(143));
    signal(daemon, libc::SIGCONT);
    daemon::end(&runtime);
}

/// A job for a daemon of the system's, which is not the caller's.
struct System {
    job: Job,
    site: &'static Site,
    directory: PathBuf,
    uri: String,
    machines: u32,
}

impl System {
    fn start() -> Option<Self> {
        let (job, site) = job()?;
        if !site.is_root {
            refuse_to_skip("the system's daemon is started by root");
            return None;
        }
        let directory = job.directory_beside("system");
        let (uri, machines) = daemon::start_system(site, &directory).unwrap();
        Some(System {
            job,
            site,
            directory,
            uri,
            machines,
        })
    }

    fn run(&self, script: &str) -> Run<'_> {
        let run = self.job.sh(script).with(&["--connect", &self.uri]);
        run.limit(300)
    }

    fn virsh(&self, args: &[&str]) -> String {
        let runtime = self.site.stage.join("runtime");
        let mut virsh = daemon::virsh_at(&self.uri, self.site, &runtime, args);
        String::from_utf8_lossy(&processes::output(&mut virsh).stdout).into_owned()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        daemon::end_system(&self.directory);
    }
}

#[test]
fn the_system_s_daemon_runs_jobs_as_the_caller() {
    let Some(system) = System::start() else {
        return;
    };
    let job = &system.job;
    job.put("input", "from the caller\n");
    let script = "printf '<%s>' \"$@\"; id -u; cat; cat input >output; echo err >&2; exit 37";
    for channel in ["9p", "link", "disk"] {
        let words = ["sh", "-c", script, "sh", "a b", "<&\"'>", "", "\u{e4}"];
        let run = job.run(&words).with(&["--connect", &system.uri]);
        let run = run.with(&["--channel", channel]).limit(300);
        let done = run.bytes("typed\n").go().exits(37);
        let uid = job.site.user.uid;
        let done = done.prints(&format!("<a b><<&\"'>><><\u{e4}>{uid}\ntyped\n"));
        assert_eq!(done.stderr, "err\n", "{channel}");
        let output = job.path().join("output");
        let owner = output.metadata().unwrap();
        assert_eq!((owner.uid(), owner.gid()), (uid, job.site.user.gid));
        assert_eq!(job.read("output"), "from the caller\n");
        std::fs::remove_file(output).unwrap();
    }
    // The guest's root has no group of the caller's (docs/libvirt.md).
    let run = system.run("touch rooted").with(&["--root"]);
    run.with(&["--channel", "9p"]).go().exits(0);
    let owner = job.path().join("rooted").metadata().unwrap();
    let group = nix::unistd::Group::from_name("nogroup").unwrap().unwrap();
    let expected = (job.site.user.uid, group.gid.as_raw());
    assert_eq!((owner.uid(), owner.gid()), expected);
}

#[test]
fn the_system_s_machines_read_images_and_end_with_the_launcher() {
    let Some(system) = System::start() else {
        return;
    };
    let Some(image) = crate::support::debian_image() else {
        return;
    };
    let own = system.job.beside("own.img");
    crate::support::tools::copy_sparse(image, &own);
    system.job.give(&own);
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let owner = own.metadata().unwrap().uid();
    let run = |script| system.run(script).image(&own);
    let done = run("cat /etc/debian_version >version; kill -9 $$").go();
    done.exits(137);
    assert!(!system.job.read("version").is_empty());
    let killed = run("echo up; sleep 600").with(&["--id", "killed"]).start();
    killed.until_it_prints("up");
    assert!(system.virsh(&["list", "--name"]).contains("killed"));
    let machines = || {
        let below = processes::descendants(system.machines);
        let is_qemu =
            |pid: &u32| processes::executable(*pid).as_ref() == Some(&system.site.hypervisor);
        below.into_iter().filter(is_qemu).collect::<Vec<_>>()
    };
    assert_eq!(machines().len(), 1);
    killed.signal(libc::SIGKILL);
    assert_eq!(killed.finish().signal(), Some(libc::SIGKILL));
    eventually("QEMU is gone", || machines().is_empty());
    eventually("the domain is gone", || {
        !system
            .virsh(&["list", "--all", "--name"])
            .contains("killed")
    });
    let destroyed = run("echo up; sleep 600")
        .with(&["--id", "destroyed"])
        .start();
    destroyed.until_it_prints("up");
    system.virsh(&["destroy", "destroyed"]);
    let done = destroyed.finish().exits(125);
    done.says(&["destroyed by someone else"]);
    assert_eq!(own.metadata().unwrap().uid(), owner);
}
