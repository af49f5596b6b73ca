//! `apppot doctor`.

use crate::support::Job;

#[test]
fn says_what_there_is() {
    let Some(job) = Job::new() else { return };
    let kernel = job.site.kernel.to_str().unwrap();
    let done = job.apppot(&["doctor"]).go().exits(0).quietly();
    done.shows(&[
        kernel,
        "seccomp",
        "guest memory",
        "address space",
        "max_map_count",
        "containment",
        "user network",
        "kvm",
        "free disk",
        "this machine can run AppPot",
    ]);
}

#[test]
fn for_programs() {
    let Some(job) = Job::new() else { return };
    let done = job.apppot(&["doctor", "--json"]).go().exits(0);
    let checks: serde_json::Value = serde_json::from_str(&done.text()).unwrap();
    for check in checks.as_array().unwrap() {
        let state = check["state"].as_str().unwrap();
        assert!(["good", "fair", "bad"].contains(&state), "{check}");
        assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
        if state != "good" {
            assert!(
                check["consequence"].is_string() && check["remedy"].is_string(),
                "{check}"
            );
        }
    }
}

#[test]
fn fails_when_nothing_can_run() {
    let Some(job) = Job::new() else { return };
    let empty = job.directory_beside("empty");
    let run = |args: &[&str]| {
        job.apppot(args)
            .without_env("APPPOT_KERNEL")
            .env("PATH", &empty)
            .env("HOME", &empty)
    };
    let by_option = job.apppot(&["doctor"]).env("APPPOT_KERNEL", "/nonexistent");
    by_option
        .go()
        .exits(1)
        .shows(&["FAIL", "/nonexistent", "cannot run AppPot"]);
    if ["/usr/lib/apppot/linux", "/usr/local/lib/apppot/linux"]
        .iter()
        .any(|path| std::path::Path::new(path).exists())
    {
        eprintln!("skipped: a kernel is installed for everybody");
        return;
    }
    run(&["doctor"])
        .go()
        .exits(1)
        .shows(&["FAIL", "no User-Mode Linux kernel", "user-mode-linux"]);
    run(&["run", "--", "true"])
        .go()
        .exits(125)
        .says(&["no User-Mode Linux kernel", "hint: "]);
}

#[test]
fn tells_of_limits() {
    let Some(job) = Job::new() else { return };
    let done = job.apppot(&["doctor"]).address_space(3 << 30).go().exits(0);
    done.shows(&["3072 MiB", "ulimit -v"]);
}
