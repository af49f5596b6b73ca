//! Further directories: `--bind`.

use crate::support::Job;

#[test]
fn read_and_written_as_allowed() {
    let Some(job) = Job::new() else { return };
    for (number, (suffix, at, written)) in [
        ("", None, true),
        (":/data/in", Some("/data/in"), true),
        (":ro", None, false),
        (":/mnt/x:ro", Some("/mnt/x"), false),
        (":rw", None, true),
    ]
    .into_iter()
    .enumerate()
    {
        let host = job.directory_beside(&format!("host{number}"));
        job.put(host.join("given"), "given");
        let guest = at.map_or(host.display().to_string(), str::to_owned);
        let script = format!("cat '{guest}/given'; echo x >'{guest}/new' && echo ' written'");
        let Some(run) = job.sh(&script).debian() else {
            return;
        };
        let done = run
            .with(&["--bind", &format!("{}{suffix}", host.display())])
            .go();
        let expected = if written { "given written\n" } else { "given" };
        assert_eq!(done.text(), expected, "{suffix}: {}", done.stderr);
        assert_eq!(host.join("new").exists(), written, "{suffix}");
    }
}

#[test]
fn with_a_mode_that_is_none_are_refused() {
    let Some(job) = Job::new() else { return };
    let bind = format!("{}:/mnt/x:RO", job.path().display());
    let done = job.run(&["true"]).with(&["--bind", &bind]).go().exits(125);
    done.says(&["'RO' is neither ro nor rw"]);
}

#[test]
fn several_at_once_and_with_the_hosts_root() {
    let Some(job) = Job::new() else { return };
    let names = ["one", "two with space", "three:colon"];
    let mut run = job.sh(
        "cd .. && for d in one 'two with space' three:colon; do echo in >\"$d/file\" || exit 1; done; echo out >beside; true",
    );
    for name in names {
        let path = job.directory_beside(name);
        run = run.with(&["--bind", path.to_str().unwrap()]);
    }
    run.go().exits(0);
    for name in names {
        assert_eq!(
            std::fs::read_to_string(job.beside(name).join("file")).unwrap(),
            "in\n",
            "{name}"
        );
    }
    assert!(!job.beside("beside").exists(), "written outside");
}

#[test]
fn a_relative_path_is_the_callers() {
    let Some(job) = Job::new() else { return };
    let path = job.directory_beside("near");
    job.sh("echo x >../near/file")
        .with(&["--bind", "../near"])
        .go()
        .exits(0);
    assert!(path.join("file").exists());
}

#[test]
fn what_cannot_be_bound_is_refused_before_boot() {
    let Some(job) = Job::new() else { return };
    job.put("file", "");
    for (bind, why) in [
        ("/missing", "'/missing'"),
        ("/missing:/data", "'/missing'"),
        ("file", "no directory"),
        (".:relative", "'relative' is no place"),
        (".:/", "no place"),
        (".:/dev", "'/dev' is no place"),
        (".:/mnt/../proc", "'/proc' is no place"),
        (".:/sys/fs", "'/sys/fs' is no place"),
        ("", "cannot bind"),
    ] {
        let done = job.sh("echo ran >ran").with(&["--bind", bind]).go();
        assert_eq!(done.code(), Some(125), "{bind}: {}", done.stderr);
        done.says(&["cannot bind", why]);
    }
    assert!(!job.has("ran"));
}

#[test]
fn of_where_homes_are() {
    let Some(job) = Job::new() else { return };
    let homes = job.directory_beside("homes");
    let bind = format!("{}:/home", homes.display());
    let Some(run) = job.sh("pwd; sudo -n true; ls -A /home").debian() else {
        return;
    };
    let here = job.path().display();
    let done = run.with(&["--bind", &bind]).go().exits(0);
    done.prints(&format!("{here}\n"));
    // The account is the appliance's own affair.
    assert_eq!(std::fs::read_dir(homes).unwrap().count(), 0);
    let run = job.sh("pwd; test -d ~").debian().unwrap();
    let done = run.with(&["--workdir", "/home"]).go().exits(0);
    done.prints("/job\n");
}
