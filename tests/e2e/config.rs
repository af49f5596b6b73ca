//! Configuration files and variables.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Job, Run};

/// `apppot config` with the user's configuration in `beside/config`.
fn show(job: &Job) -> Run<'_> {
    let run = job.apppot(&["config"]).without_env("APPPOT_KERNEL");
    run.env("XDG_CONFIG_HOME", job.beside("config"))
}

fn user_file(job: &Job, text: &str) -> std::path::PathBuf {
    let directory = job.directory_beside("config").join("apppot");
    std::fs::create_dir(&directory).unwrap();
    job.put(directory.join("config.toml"), text)
}

/// Value and origin of a key.
fn row(text: &str, key: &str) -> (String, String) {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(key))
        .unwrap();
    let parts: Vec<&str> = line
        .split("  ")
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    (parts[1].to_owned(), parts.last().unwrap().to_string())
}

#[test]
fn every_value_has_an_origin() {
    let Some(job) = Job::new() else { return };
    let user = user_file(&job, "memory = '300M'\ncpus = 1\ngrace = '7s'\n");
    let project = job.put(
        "apppot.toml",
        "memory = '200M'\nimage = 'a.img'\ntime-limit = '2h'\n",
    );
    let done = show(&job).env("APPPOT_MEMORY", "100M").go().exits(0);
    let text = done.text();
    let (user, project) = (user.display().to_string(), project.display().to_string());
    let image = job.path().join("a.img").display().to_string();
    for (key, value, origin) in [
        ("memory", "100M", "environment (APPPOT_MEMORY)"),
        ("image", &image, project.as_str()),
        ("time-limit", "2h", &project),
        ("grace", "7s", &user),
        ("cpus", "1", &user),
        ("containment", "auto", "built-in"),
    ] {
        assert_eq!(
            row(&text, key),
            (value.to_owned(), origin.to_owned()),
            "{text}"
        );
    }
    let json = show(&job).with(&["--json"]).go().exits(0).text();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(
        rows.as_array()
            .unwrap()
            .iter()
            .any(|row| row["key"] == "memory" && row["value"] == "200M"),
        "{json}"
    );
}

#[test]
fn variables_that_mean_nothing_are_named() {
    let Some(job) = Job::new() else { return };
    let run = show(&job).env("APPPOT_MEMROY", "1G").env("APPPOT_ID", "x");
    let done = run.go().exits(0).says(&["APPPOT_MEMROY is no variable"]);
    assert!(!done.stderr.contains("APPPOT_ID"), "{}", done.stderr);
    assert_eq!(row(&done.text(), "memory").1, "built-in");
}

#[test]
fn is_followed() {
    let Some(job) = Job::new() else { return };
    let data = job.directory_beside("data");
    let text = format!(
        "memory = '150M'\nbind = ['{}:/mnt/data:ro']\n[env]\nFROM = 'file'\nBOTH = 'file'\n",
        data.display()
    );
    job.put("apppot.toml", text);
    let script = "echo $FROM $BOTH; echo x >/mnt/data/x || echo ro";
    let done = job.sh(script).with(&["--env", "BOTH=option"]).go().exits(0);
    done.prints("file option\nro\n");
    // Also from a directory below, and an option wins.
    let below = job.path().join("below");
    std::fs::create_dir(&below).unwrap();
    job.give(&below);
    for (options, memory) in [(&[][..], "mem=150M"), (&["--memory", "160M"], "mem=160M")] {
        let run = job.run(&["true"]).started_in(&below).with(options);
        run.with(&["--dry-run"]).go().exits(0).shows(&[memory]);
    }
}

#[test]
fn variables_are_followed() {
    let Some(job) = Job::new() else { return };
    let image = crate::support::tools::ext4(&job, "image");
    let run = || job.run(&["cat", "/etc/name"]).env("APPPOT_IMAGE", &image);
    run().go().exits(0).prints("image");
    // The name that the first AppPot had.
    let dry = run().env("APPPOT_MEM", "150M").with(&["--dry-run"]);
    dry.go()
        .exits(0)
        .shows(&["mem=150M", image.to_str().unwrap()]);
    let done = job
        .run(&["sleep", "1000"])
        .env("APPPOT_TIME_LIMIT", "3s")
        .limit(30)
        .go();
    done.exits(124);
}

#[test]
fn mistakes_are_named_with_file_and_line() {
    let Some(job) = Job::new() else { return };
    for (text, line, what) in [
        ("memory = '1G'\nmemroy = '2G'\n", 2, "memroy"),
        ("memory = 'much'\n", 1, "much"),
        ("\n\ncontainment = 'maybe'\n", 3, "maybe"),
        ("cpus = ]\n", 1, ""),
    ] {
        let path = job.put("apppot.toml", text);
        let done = job.sh("touch ran").go();
        assert_eq!(done.code(), Some(125), "{text}: {}", done.stderr);
        done.says(&[&format!("{}:{line}: ", path.display()), what]);
    }
    std::fs::remove_file(job.path().join("apppot.toml")).unwrap();
    for (name, value) in [
        ("APPPOT_MEMORY", "much"),
        ("APPPOT_CPUS", "0"),
        ("APPPOT_CONTAINMENT", "maybe"),
    ] {
        let done = job.sh("touch ran").env(name, value).go();
        assert_eq!(done.code(), Some(125), "{name}: {}", done.stderr);
        done.says(&[name, value]);
    }
    assert!(!job.has("ran"));
}

#[test]
fn that_others_could_write_is_refused() {
    let Some(job) = Job::new() else { return };
    let path = job.put("apppot.toml", "image = '/trap'\n");
    let refuses = |why: &str| {
        for run in [show(&job), job.sh("touch ran")] {
            let done = run.go().exits(125);
            done.says(&[path.to_str().unwrap(), "is not followed", why, "hint: "]);
        }
        assert!(!job.has("ran"));
    };
    let set_mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(0o666);
    refuses("every user may write");
    set_mode(0o600);
    assert_eq!(row(&show(&job).go().exits(0).text(), "image").0, "/trap");
    if !job.site.is_root {
        eprintln!("skipped: only root can make another user's file");
        return;
    }
    std::os::unix::fs::chown(&path, None, Some(65534)).unwrap();
    set_mode(0o660);
    refuses("group (gid 65534) may write");
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    set_mode(0o644);
    refuses("another user (uid 65534)");
    // Nor by a link of theirs to a file of the caller's own.
    let own = job.put("own.toml", "image = '/trap'\n");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(own, &path).unwrap();
    std::os::unix::fs::lchown(&path, Some(65534), Some(65534)).unwrap();
    refuses("another user (uid 65534)");
    // An own one that is nearer is a way out.
    let below = job.path().join("below");
    std::fs::create_dir(&below).unwrap();
    job.give(&below);
    job.put("below/apppot.toml", "");
    let done = show(&job).started_in(&below).go().exits(0);
    assert_eq!(row(&done.text(), "image").0, "host");
}

#[test]
fn shows_the_kernel_that_is_used() {
    let Some(job) = Job::new() else { return };
    let kernel = job.site.kernel.to_str().unwrap();
    let shown = row(
        &show(&job).env("APPPOT_KERNEL", kernel).go().text(),
        "kernel",
    );
    assert_eq!(
        shown,
        (
            kernel.to_owned(),
            String::from("environment (APPPOT_KERNEL)")
        )
    );
    // Beside the command nothing lies in a build directory.
    let data = job.directory_beside("data");
    std::fs::create_dir(data.join("apppot")).unwrap();
    let place = data.join("apppot/linux");
    std::os::unix::fs::symlink(kernel, &place).unwrap();
    let done = show(&job).env("XDG_DATA_HOME", &data).go().exits(0);
    let found = (
        place.display().to_string(),
        String::from("the first one found"),
    );
    assert_eq!(row(&done.text(), "kernel"), found);
}
