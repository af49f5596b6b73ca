//! What runs when no command is given, and shells.

use crate::support::tools::small_root;
use crate::support::{Input, Job};

#[test]
fn the_job_directorys_script() {
    let Some(job) = Job::new() else { return };
    job.script("apppot-run", "#!/bin/sh\necho \"runs in $PWD\"; exit 9\n");
    job.apppot(&["run"])
        .go()
        .exits(9)
        .prints(&format!("runs in {}\n", job.path().display()));
    // A command comes first.
    job.run(&["echo", "command"])
        .go()
        .exits(0)
        .prints("command\n");
}

#[test]
fn the_images_own_script() {
    let Some(job) = Job::new() else { return };
    let root = small_root(&job, "root");
    std::fs::create_dir(root.join("etc/apppot")).unwrap();
    let autorun = job.script(
        root.join("etc/apppot/autorun").to_str().unwrap(),
        "#!/bin/sh\necho autorun in $PWD; exit 8\n",
    );
    let expected = format!("autorun in {}\n", job.path().display());
    job.apppot(&["run"])
        .image(&root)
        .go()
        .exits(8)
        .prints(&expected);
    // A forgotten chmod must not run something else instead.
    job.put("apppot-run", "#!/bin/sh\nexit 1\n");
    job.apppot(&["run"])
        .image(&root)
        .go()
        .exits(126)
        .says(&["apppot-run: permission denied"]);
    job.script("apppot-run", "#!/bin/sh\nexit 9\n");
    job.apppot(&["run"]).image(&root).go().exits(9);
    assert!(autorun.exists());
}

#[test]
fn a_shell_that_reads_its_commands() {
    let Some(job) = Job::new() else { return };
    let script = "echo in $PWD\nexit 3\necho not here\n";
    let expected = format!("in {}\n", job.path().display());
    for command in ["run", "shell"] {
        job.apppot(&[command])
            .bytes(script)
            .go()
            .exits(3)
            .shows(&[&expected]);
    }
}

#[test]
fn a_shell_although_there_is_a_script() {
    let Some(job) = Job::new() else { return };
    job.script("apppot-run", "#!/bin/sh\nexit 9\n");
    job.apppot(&["shell"]).bytes("exit 4\n").go().exits(4);
    job.apppot(&["shell"]).input(Input::Null).go().exits(0);
}

#[test]
fn a_shell_of_the_images_user() {
    let Some(job) = Job::new() else { return };
    let Some(run) = job.apppot(&["shell"]).debian() else {
        return;
    };
    run.bytes("echo $0 $(whoami)\n")
        .go()
        .exits(0)
        .shows(&["-bash user"]);
}

#[test]
fn ps_knows_when_the_machine_started() {
    let Some(job) = Job::new() else { return };
    let done = job.sh("ps aux | cat; ps -o comm= -p $$").go().exits(0);
    done.quietly();
}
