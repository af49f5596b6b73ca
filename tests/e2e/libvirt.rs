//! What is libvirt's alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::{daemon, eventually, processes, site, Backend, Input, Job, Site};

/// A job directory where machines are libvirt's.
fn job() -> Option<(Job, &'static Site)> {
    let site = site()?;
    (site.backend == Backend::Libvirt).then(Job::new)??;
    Some((Job::new()?, site))
}

/// What `virsh` prints.
fn virsh(site: &Site, args: &[&str]) -> String {
    let output = processes::output(&mut daemon::virsh(site, &site.stage.join("runtime"), args));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

fn is_listed(site: &Site, id: &str) -> bool {
    virsh(site, &["list", "--all", "--name"])
        .lines()
        .any(|line| line.trim() == id)
}

#[test]
fn the_machine_is_seen_and_explains_itself() {
    let Some((job, site)) = job() else { return };
    let mut running = job
        .sh("echo up; cat")
        .with(&["--id", "seen.job_1"])
        .input(Input::Open)
        .start();
    running.until_it_prints("up");
    assert!(is_listed(site, "seen.job_1"));
    let xml = virsh(site, &["dumpxml", "seen.job_1"]);
    for part in [
        "<apppot:id>seen.job_1</apppot:id>",
        "<apppot:image>/</apppot:image>",
        &format!("<apppot:started-by>{}</apppot:started-by>", site.user.name),
        &format!(
            "<apppot:directory>{}</apppot:directory>",
            job.path().display()
        ),
    ] {
        assert!(xml.contains(part), "{part} in {xml}");
    }
    let id = virsh(site, &["dominfo", "seen.job_1"]);
    assert!(id.contains("Persistent:     no"), "{id}");
    running.end_input();
    running.finish().exits(0);
    assert!(!is_listed(site, "seen.job_1"));
}

#[test]
fn two_jobs_of_one_name_are_refused() {
    let Some((job, _)) = job() else { return };
    let mut first = job
        .sh("echo up; cat")
        .with(&["--id", "twice"])
        .input(Input::Open)
        .start();
    first.until_it_prints("up");
    let second = job.sh("true").with(&["--id", "twice"]).go().exits(125);
    second.says(&["'twice'", "already exists", "hint: ", "--id"]);
    first.end_input();
    first.finish().exits(0).prints("up\n");
}

#[test]
fn ended_from_outside() {
    let Some((job, site)) = job() else { return };
    for (request, reason) in [
        ("destroy", "destroyed by someone else"),
        ("reset", "the machine was reset"),
    ] {
        let script = "echo up; sleep 600";
        let running = job.sh(script).with(&["--id", request]).start();
        running.until_it_prints("up");
        virsh(site, &[request, request]);
        running.finish().exits(125).says(&["error: ", reason]);
        eventually("the domain is gone", || !is_listed(site, request));
    }
}

#[test]
fn who_asks_the_machine_to_shut_down_ends_the_job() {
    let Some((job, site)) = job() else { return };
    let script = "trap 'echo saved >made; exit 3' TERM; echo up; while :; do sleep 1; done";
    for request in ["shutdown", "reboot"] {
        let running = job.sh(script).with(&["--id", request]).start();
        running.until_it_prints("up");
        virsh(site, &[request, request, "--mode", "acpi"]);
        let done = running.finish().exits(3);
        done.says(&["somebody asked the machine to shut down"]);
        assert_eq!(job.read("made"), "saved\n");
        fs::remove_file(job.path().join("made")).unwrap();
        eventually("the domain is gone", || !is_listed(site, request));
    }
}

#[test]
fn a_killed_launcher_leaves_no_domain() {
    let Some((job, site)) = job() else { return };
    let running = job.sh("echo up; sleep 600").start();
    let id = format!("apppot-{}", running.pid());
    running.until_it_prints("up");
    let machine = running.machine(&site.hypervisor);
    let asked = Instant::now();
    assert!(is_listed(site, &id));
    let virsh = asked.elapsed();
    running.signal(libc::SIGKILL);
    let killed = Instant::now();
    const SOON: Duration = Duration::from_secs(2);
    eventually("QEMU is gone", || processes::executable(machine).is_none());
    let took = killed.elapsed();
    assert!(took < SOON, "{took:?}");
    eventually("the domain is gone", || !is_listed(site, &id));
    let took = killed.elapsed();
    assert!(took < SOON + virsh, "{took:?}, {virsh:?} for an answer");
    assert_eq!(running.finish().signal(), Some(libc::SIGKILL));
}

#[test]
fn the_console_is_there_when_asked_for() {
    let Some((job, site)) = job() else { return };
    let script =
        "echo up; while [ ! -e stop ]; do echo from the guest >/dev/ttyS0; sleep 0.2; done";
    let options = ["--id", "console", "--pty-console", "--root"];
    let running = job.sh(script).with(&options).start();
    running.until_it_prints("up");
    // script(1) gives it the terminal that it wants.
    let name = daemon::virsh(
        site,
        &site.stage.join("runtime"),
        &["console", "console", "--force"],
    );
    let words: Vec<String> = std::iter::once(name.get_program())
        .chain(name.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut typed = std::process::Command::new("timeout");
    processes::as_user(&mut typed, site);
    typed.args(["5", "script", "-qc", &words.join(" "), "/dev/null"]);
    typed.envs(
        name.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let output = processes::output(&mut typed);
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    job.put("stop", "");
    running.finish().exits(0);
    assert!(seen.contains("from the guest"), "{seen}");
}

#[test]
fn names_that_xml_knows_are_unchanged() {
    let site = site();
    if site.is_none_or(|site| site.backend != Backend::Libvirt) {
        return;
    }
    for name in [
        "a<b>&\"'c]]>--d",
        "ä€ 😀,x=y",
        "two  spaces ",
        "line\nbreak\ttab",
    ] {
        let Some(job) = Job::named(name) else { return };
        let done = job
            .run(&[
                "sh",
                "-c",
                "printf %s \"$PWD|$1\"; echo \"$1\" >\"$1\"",
                "sh",
                name,
            ])
            .env("APPPOT_CHANNEL", "auto")
            .go()
            .exits(0);
        assert_eq!(done.text(), format!("{}|{name}", job.path().display()));
        assert_eq!(job.read(name), format!("{name}\n"));
    }
}

#[test]
fn daemons_that_will_not_do_are_named() {
    let Some((job, _)) = job() else { return };
    for (uri, reason) in [
        ("qemu+ssh://elsewhere/system", "another host's"),
        ("test:///default", "not of QEMU"),
        ("qemu:///system?socket=/nonexistent", "group"),
        ("qemu:///embed?root=/tmp", "only 'socket=PATH'"),
        ("nonsense", "aliases"),
    ] {
        let done = job
            .sh("touch ran")
            .with(&["--connect", uri])
            .go()
            .exits(125);
        done.says(&["error: ", uri, reason, "hint: "]);
    }
    assert!(!job.has("ran"));
    let long = job.directory_beside(&"long".repeat(25));
    let run = job.sh("touch ran").env("TMPDIR", &long);
    run.go().exits(125).says(&["107 bytes", "hint: set TMPDIR"]);
    let run = job.sh("touch ran").with(&["--extra", "a\u{1b}b"]);
    run.go().exits(125).says(&["a control character"]);
    assert!(!job.has("ran"));
    let run = job.sh("true").with(&["--containment", "required"]);
    run.go().exits(125).says(&["cannot be confined", "libvirt"]);
    let run = job
        .sh("true")
        .with(&["--backend", "uml", "--connect", "x:///y"]);
    run.without_env("APPPOT_KERNEL")
        .go()
        .exits(125)
        .says(&["--connect"]);
}

#[test]
fn what_killed_launchers_have_left_is_removed() {
    let Some((job, _)) = job() else { return };
    let place = job.directory_beside("tmp");
    let left = place.join(".apppot-libvirt-0");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("initramfs"), "x").unwrap();
    job.give(&left);
    job.sh("true").env("TMPDIR", &place).go().exits(0);
    assert_eq!(place.read_dir().unwrap().count(), 0);
}

#[test]
fn a_daemon_that_ends_takes_the_machine_along() {
    let Some((job, site)) = job() else { return };
    let runtime = job.directory_beside("runtime");
    let shell = daemon::start(site, &runtime).unwrap();
    let run = job
        .sh("echo up; sleep 600")
        .env("XDG_RUNTIME_DIR", &runtime);
    let running = run.with(&["--id", "left"]).start();
    running.until_it_prints("up");
    let machines = processes::descendants(shell);
    let is_machine = |pid: &&u32| processes::executable(**pid).as_deref() == Some(&site.hypervisor);
    let machine = *machines.iter().find(is_machine).expect("a machine");
    // SAFETY: no pointers; the daemon is ours.
    unsafe { libc::kill(daemon::libvirtd(&runtime), libc::SIGKILL) };
    let done = running.finish().exits(125);
    done.says(&["connection to libvirt was lost", "ended"]);
    eventually("QEMU is gone", || processes::executable(machine).is_none());
    daemon::start(site, &runtime).unwrap();
    // It looks at what it knew of when it is up.
    eventually("the domain is gone", || {
        let all = ["list", "--all", "--name"];
        let list = processes::output(&mut daemon::virsh(site, &runtime, &all));
        assert!(list.status.success(), "{list:?}");
        String::from_utf8_lossy(&list.stdout).trim().is_empty()
    });
    daemon::end(&runtime);
}

#[test]
fn doctor_tells_of_domains_and_of_what_is_reached() {
    let Some((job, _)) = job() else { return };
    let here = job.path().display().to_string();
    let doctor = || job.apppot(&["doctor"]).limit(120);
    let done = doctor().go().exits(0);
    done.shows(&[
        "qemu:///session",
        "libvirt domains",
        "of type ",
        "libvirt access",
        "QEMU runs as you, who reach ",
        &here,
    ]);
    let unreadable = job.put("image", "");
    std::fs::set_permissions(&unreadable, std::fs::Permissions::from_mode(0o000)).unwrap();
    let done = doctor().env("APPPOT_IMAGE", &unreadable).go();
    done.shows(&["libvirt access", "who do not reach", "EACCES"]);
}
