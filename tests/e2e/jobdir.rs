//! The job directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, PermissionsExt};

use crate::support::{channel, copies_files, debian_image, Job};

const NAMES: [&[u8]; 14] = [
    b"with space",
    b"new\nline",
    "\u{fc}n\u{ef} \u{1f41a}".as_bytes(),
    b"com,ma",
    b"col:on",
    b"equals=sign",
    b"%41%zz",
    b"-dash",
    b"quote'\"",
    b"back\\slash",
    b"$HOME",
    b"*",
    b"#hash",
    b"no\xff\xfeutf8",
];

/// Runs a command there, which must find itself there and leave a file.
fn works_in(name: &[u8], in_debian: bool) {
    let Some(job) = Job::named(OsStr::from_bytes(name)) else {
        return;
    };
    let mut run = job.sh("pwd -P >here; cat given; exit 3");
    if in_debian {
        let Some(image) = debian_image() else { return };
        run = run.image(image);
    }
    job.put("given", "given");
    let shown = String::from_utf8_lossy(name);
    let done = run.go();
    if channel() == "virtiofs" && std::str::from_utf8(name).is_err() {
        done.exits(125).says(&["only names in UTF-8"]);
        return;
    }
    assert_eq!(done.code(), Some(3), "{shown:?}: {}", done.stderr);
    assert_eq!(done.text(), "given", "{shown:?}");
    let here = std::fs::read(job.path().join("here")).unwrap();
    assert_eq!(
        here,
        [job.path().as_os_str().as_bytes(), b"\n"].concat(),
        "{shown:?}"
    );
}

#[test]
fn of_any_name() {
    NAMES.iter().for_each(|name| works_in(name, false));
}

#[test]
fn of_any_name_in_an_image() {
    NAMES.iter().for_each(|name| works_in(name, true));
}

#[test]
fn reached_through_a_symbolic_link() {
    let Some(job) = Job::new() else { return };
    let link = job.beside("link");
    symlink(job.path(), &link).unwrap();
    let shown = format!("{}\n", link.display());
    let images = [None, debian_image()];
    for (number, image) in images.iter().enumerate() {
        let script = format!("pwd; echo made >file{number}");
        let mut run = job.sh(&script).started_in(&link).env("PWD", &link);
        if let Some(image) = image {
            run = run.image(image);
        }
        run.go().exits(0).prints(&shown);
        assert_eq!(job.read(&format!("file{number}")), "made\n");
    }
}

#[test]
fn chosen_by_option() {
    let Some(job) = Job::new() else { return };
    let other = job.directory_beside("other place");
    for (workdir, from) in [
        (other.to_str().unwrap(), job.path()),
        ("../other place", job.path()),
        (".", other.as_path()),
    ] {
        let run = job
            .sh("pwd; echo x >>file")
            .with(&["--workdir", workdir])
            .started_in(from);
        run.go().exits(0).prints(&format!("{}\n", other.display()));
    }
    assert_eq!(
        std::fs::read_to_string(other.join("file")).unwrap(),
        "x\nx\nx\n"
    );
    assert!(!job.has("file"));
}

#[test]
fn that_cannot_be_used() {
    let Some(job) = Job::new() else { return };
    job.put("file", "");
    for (workdir, why) in [("missing", "No such file"), ("file", "no directory")] {
        let done = job.run(&["true"]).with(&["--workdir", workdir]).go();
        done.exits(125)
            .says(&["cannot use the job directory", workdir, why]);
    }
    let closed = job.directory_beside("closed");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    let names = [closed.to_str().unwrap(), "EACCES"];
    for option in ["--workdir", "--bind"] {
        let run = job.run(&["true"]).with(&[option, names[0]]);
        run.go().exits(125).says(&names);
    }
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn that_is_gone() {
    let Some(job) = Job::new() else { return };
    let gone = job.directory_beside("gone");
    let mut command = job.run(&["true"]).command();
    command.current_dir("/");
    let script = format!(
        "cd '{0}' && rmdir '{0}' && exec \"$0\" run -- true",
        gone.display()
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).arg(&job.site.binary);
    let output = crate::support::processes::output(&mut shell);
    assert_eq!(output.status.code(), Some(125));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("current directory"), "{stderr}");
}

#[test]
fn that_is_read_only() {
    let Some(job) = Job::new() else { return };
    let fixed = job.directory_beside("fixed");
    job.put(fixed.join("given"), "given");
    std::fs::set_permissions(&fixed, std::fs::Permissions::from_mode(0o555)).unwrap();
    let done = job
        .sh("cat given; echo x >new || exit 9")
        .started_in(&fixed)
        .go();
    std::fs::set_permissions(&fixed, std::fs::Permissions::from_mode(0o755)).unwrap();
    done.exits(9).prints("given");
    assert!(!fixed.join("new").exists());
}

#[test]
fn of_the_system() {
    let Some(job) = Job::new() else { return };
    // Nobody copies these.
    let all: &[&str] = match copies_files() {
        true => &["/", "/etc"],
        false => &["/", "/tmp", "/etc", "/usr/share"],
    };
    for directory in all {
        let done = job.sh("pwd; test -r .").started_in(*directory).go();
        assert_eq!(done.code(), Some(0), "{directory}: {}", done.stderr);
        done.prints(&format!("{directory}\n"));
    }
}

#[test]
fn of_the_system_does_not_cover_the_images_own() {
    let Some(job) = Job::new() else { return };
    let all: &[&str] = match copies_files() {
        true => &["/etc"],
        false => &["/", "/etc", "/usr"],
    };
    for directory in all {
        let script = "grep ^user: /etc/passwd >/dev/null && pwd";
        let Some(run) = job.sh(script).started_in(*directory).debian() else {
            return;
        };
        run.go().exits(0).prints("/job\n");
    }
}
