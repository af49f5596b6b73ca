//! What else can be asked for.

use serde_json::Value;

use crate::support::{Job, PANIC, PANIC_OPTIONS};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_report() {
    let Some(job) = Job::new() else { return };
    let options = ["--report", "report.json", "--id", "the-id"];
    job.sh("exit 37").with(&options).go().exits(37).quietly();
    let report = json(&job.read("report.json"));
    assert_eq!(report["id"], "the-id");
    assert_eq!(report["exit-status"], 37);
    assert_eq!(
        report["machine"]["kernel"],
        job.site.kernel.to_str().unwrap()
    );
    assert_eq!(report["machine"]["backend"], "uml");
    for key in ["boot-ms", "total-ms"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{report}");
    }
    let names: Vec<_> = std::fs::read_dir(job.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["report.json"]);
}

#[test]
fn a_file_is_not_named_like_standard_output() {
    let Some(job) = Job::new() else { return };
    for words in [
        &["run", "--report", "-", "--", "true"][..],
        &["snap", "base", "image", "-o", "-"],
        &["snap", "commit", "--base", "b", "--changes", "c", "-o", "-"],
        &["image", "import", "source", "-"],
    ] {
        let done = job.apppot(words).go().exits(2);
        done.says(&["'-'", "'./-'"]);
    }
    let options = ["--report", "./-"];
    job.run(&["true"]).with(&options).go().exits(0);
    assert!(job.has("-"));
}

#[test]
fn a_report_about_every_end() {
    let Some(job) = Job::new() else { return };
    for (script, options, status, outcome) in [
        ("kill -9 $$", &[][..], 137, "signalled"),
        ("sleep 100", &["--time-limit", "3s"], 124, "timed-out"),
        (PANIC, &PANIC_OPTIONS, 125, "lost"),
    ] {
        let run = job
            .sh(script)
            .with(options)
            .with(&["--report", "report"])
            .limit(30);
        run.go().exits(status);
        let report = job.read("report");
        assert_eq!(json(&report)["exit-status"], status);
        assert!(report.contains(outcome), "{outcome}: {report}");
    }
}

#[test]
fn a_report_that_cannot_be_written() {
    let Some(job) = Job::new() else { return };
    let done = job
        .run(&["true"])
        .with(&["--report", "missing/report"])
        .go();
    done.exits(125).says(&["missing/report"]);
}

#[test]
fn json_for_programs() {
    let Some(job) = Job::new() else { return };
    let done = job
        .sh("echo out; exit 3")
        .with(&["--json"])
        .go()
        .exits(3)
        .prints("out\n");
    assert_eq!(json(&done.stderr)["exit-status"], 3);
    let done = job
        .run(&["true"])
        .with(&["--json", "--image", "missing.img"])
        .go()
        .exits(125);
    let error = json(&done.stderr);
    assert!(
        error["error"].as_str().unwrap().contains("missing.img"),
        "{error}"
    );
}

#[test]
fn a_dry_run_starts_nothing() {
    let Some(job) = Job::new() else { return };
    let done = job
        .sh("touch ran")
        .with(&["--dry-run"])
        .go()
        .exits(0)
        .quietly();
    let kernel = job.site.kernel.to_str().unwrap();
    let memory = job
        .run(&["true"])
        .with(&["--dry-run", "--memory", "200M"])
        .go()
        .exits(0);
    memory.shows(&["mem=200M"]);
    done.shows(&[kernel, "backend: uml", job.path().to_str().unwrap()]);
    assert!(!job.has("ran"));
    let done = job
        .sh("touch ran")
        .with(&["--dry-run", "--json"])
        .go()
        .exits(0);
    assert_eq!(json(&done.text())["argv"][0], kernel);
    job.run(&["true"])
        .with(&["--dry-run", "--image", "missing.img"])
        .go()
        .exits(125);
    job.run(&["true"])
        .with(&["--dry-run", "--memory", "3"])
        .go()
        .exits(125);
}

#[test]
fn words_for_the_guests_kernel() {
    let Some(job) = Job::new() else { return };
    let options = ["--extra", "foo=bar", "--extra", "-dash"];
    job.run(&["cat", "/proc/cmdline"])
        .with(&options)
        .go()
        .exits(0)
        .shows(&[" foo=bar ", " -dash "]);
    for (word, why) in [
        ("apppot.uid=0", "AppPot's own"),
        ("a b", "space"),
        ("--", "end"),
        ("ü", "ASCII"),
    ] {
        let done = job.run(&["true"]).with(&[&format!("--extra={word}")]).go();
        assert_eq!(done.code(), Some(125), "{word}: {}", done.stderr);
        done.says(&[word, why]);
    }
}

#[test]
fn names_of_machines() {
    let Some(job) = Job::new() else { return };
    job.sh("echo $APPPOT_ID")
        .with(&["--id", "a.b-c_7"])
        .go()
        .exits(0)
        .prints("a.b-c_7\n");
    for id in ["", "a b", "a/b", "a\nb", &"x".repeat(65)] {
        let done = job.run(&["true"]).with(&["--id", id]).go();
        assert_eq!(done.code(), Some(125), "{id:?}");
        done.says(&["machine's name"]);
    }
}

#[test]
fn how_much_is_said() {
    let Some(job) = Job::new() else { return };
    job.run(&["true"]).go().exits(0).quietly();
    job.run(&["true"])
        .with(&["--quiet"])
        .go()
        .exits(0)
        .quietly();
    let kernel = job.site.kernel.to_str().unwrap();
    job.run(&["true"]).with(&["-v"]).go().exits(0).says(&[
        kernel,
        "memory:",
        "containment:",
        "time:",
    ]);
    let done = job
        .sh(PANIC)
        .with(&PANIC_OPTIONS)
        .with(&["-vv"])
        .limit(30)
        .go()
        .exits(125);
    // As it happens, and in the error at the end.
    assert!(
        done.stderr.matches("Kernel panic").count() >= 2,
        "{}",
        done.stderr
    );
    job.run(&["true"])
        .with(&["-q", "-v"])
        .go()
        .exits(2)
        .says(&["cannot be used with"]);
}

#[test]
fn memory_is_what_was_asked_for() {
    let Some(job) = Job::new() else { return };
    for (memory, mib) in [("96M", 96), ("0.5G", 512), ("1048576K", 1024)] {
        let done = job
            .sh("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
            .with(&["--memory", memory])
            .go()
            .exits(0);
        let found: u64 = done.text().trim().parse().unwrap();
        assert!(
            (mib * 1024 * 3 / 4..=mib * 1024).contains(&found),
            "{memory}: {found} KiB"
        );
    }
}

#[test]
fn several_cpus() {
    let Some(job) = Job::new() else { return };
    let run = job.run(&["nproc"]).with(&["--cpus", "2"]);
    if job.site.has_own_kernel() {
        run.go().exits(0).prints("2\n");
    } else {
        run.go().exits(125).says(&["SMP", "make kernel"]);
    }
    job.run(&["nproc"])
        .with(&["--cpus", "1"])
        .go()
        .exits(0)
        .prints("1\n");
    let none = job.run(&["nproc"]).with(&["--cpus", "0"]).go().exits(2);
    none.says(&["at least one CPU"]);
}

#[test]
fn without_seccomp() {
    let Some(job) = Job::new() else { return };
    // The guest's kernel takes this word out of its command line.
    let has_it = |mode: &str| {
        let options = ["--seccomp", mode];
        job.run(&["true"]).with(&options).go().exits(0).quietly();
        let shown = job
            .run(&["true"])
            .with(&options)
            .with(&["--dry-run"])
            .go()
            .exits(0);
        shown.text().contains("seccomp=on")
    };
    assert_eq!(has_it("auto"), job.site.has_own_kernel());
    assert!(!has_it("off"));
    job.run(&["true"])
        .with(&["--seccomp", "maybe"])
        .go()
        .exits(2);
}

#[test]
fn the_kernel_and_the_backend() {
    let Some(job) = Job::new() else { return };
    let kernel = job.site.kernel.to_str().unwrap();
    let run = || job.run(&["uname", "-r"]).without_env("APPPOT_KERNEL");
    run()
        .with(&["--kernel", kernel, "--backend", "uml"])
        .go()
        .exits(0);
    // Found where 'make kernel' puts it.
    let data = job.directory_beside("data");
    let place = data.join("apppot");
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::symlink(kernel, place.join("linux")).unwrap();
    let done = run()
        .env("XDG_DATA_HOME", &data)
        .with(&["-v"])
        .go()
        .exits(0);
    done.says(&[place.join("linux").to_str().unwrap()]);
    // And where 'make install PREFIX=...' puts both.
    let prefix = job.directory_beside("prefix");
    for directory in ["bin", "lib", "lib/apppot"] {
        std::fs::create_dir(prefix.join(directory)).unwrap();
    }
    let installed = prefix.join("lib/apppot/linux");
    std::os::unix::fs::symlink(kernel, &installed).unwrap();
    let binary = prefix.join("bin/apppot");
    std::fs::copy(&job.site.binary, &binary).unwrap();
    let done = run().binary(&binary).with(&["-v"]).go().exits(0);
    done.says(&[installed.to_str().unwrap()]);
    run()
        .with(&["--backend", "vmware"])
        .go()
        .exits(125)
        .says(&["'vmware'", "uml"]);
}

#[test]
fn help_version_and_completions() {
    let Some(job) = Job::new() else { return };
    let without = match cfg!(feature = "libvirt") {
        true => "",
        false => " (without libvirt)",
    };
    let version = format!("apppot {}{without}\n", env!("CARGO_PKG_VERSION"));
    job.apppot(&["--version"]).go().exits(0).prints(&version);
    job.apppot(&["--help"]).go().exits(0).shows(&[
        "run",
        "shell",
        "doctor",
        "config",
        "completions",
    ]);
    job.apppot(&["run", "--help"])
        .go()
        .exits(0)
        .shows(&["--image", "--time-limit", "Exit status"]);
    job.apppot(&["help"]).go().exits(0).shows(&["doctor"]);
    let done = job.apppot(&["help", "run"]).go().exits(0);
    done.shows(&["--image", "Exit status"]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        job.apppot(&["completions", shell])
            .go()
            .exits(0)
            .shows(&["apppot", "image"]);
    }
}

#[test]
fn mistakes_in_usage() {
    let Some(job) = Job::new() else { return };
    for (args, what) in [
        (&[][..], "Usage"),
        (&["--no-such-option"], "--no-such-option"),
        (&["run", "--no-such-option"], "--no-such-option"),
        (&["frobnicate"], "frobnicate"),
        (&["run", "--memory", "much", "true"], "much"),
        (&["run", "--time-limit", "soon", "true"], "soon"),
        (
            &["run", "--containment", "maybe", "true"],
            "required, auto or off",
        ),
        (&["run", "--cpus", "x", "true"], "x"),
        (&["completions", "csh"], "csh"),
    ] {
        let done = job.apppot(args).go();
        assert_eq!(done.code(), Some(2), "{args:?}: {}", done.stderr);
        done.says(&[what]);
    }
}

#[test]
fn a_report_to_a_pipe_that_nobody_reads() {
    let Some(job) = Job::new() else { return };
    let fifo = job.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    job.give(&fifo);
    let done = job
        .run(&["true"])
        .with(&["--report", "fifo"])
        .go()
        .exits(125);
    done.says(&["cannot write the report to 'fifo'", "nobody reads"]);
}
