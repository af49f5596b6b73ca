//! Jobs in a cloud that boots what it is asked for: EC2 and S3 are moto's, the machine is one of QEMU's that
//! starts a copy of the image by itself, with a metadata service in a network of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{json, Value};

use crate::ec2::{cloud, left, nothing_is_left, run, SECRET};
use crate::support::machine::Machine;
use crate::support::metadata::Metadata;
use crate::support::moto::{Fate, Moto, Proxy, Request, STORE};
use crate::support::tools::copy_sparse;
use crate::support::{boot_disk, noise, Backend, Job, Run, Running};

struct Cloud<'a> {
    job: &'a Job,
    moto: Moto,
    proxy: Proxy,
    image: &'static Path,
}

/// A machine that the launcher has asked for.
struct Instance {
    id: String,
    machine: Machine,
    metadata: Metadata,
}

impl<'a> Cloud<'a> {
    /// `decide` says what becomes of each request of the launcher and of the machine.
    fn start(
        job: &'a Job,
        decide: impl Fn(usize, &Request) -> Fate + Send + Sync + 'static,
    ) -> Option<Self> {
        if job.site.backend != Backend::Qemu {
            return None;
        }
        let (image, moto) = (boot_disk()?, cloud()?);
        let proxy = Proxy::start(&moto.address, decide);
        Some(Cloud {
            job,
            moto,
            proxy,
            image,
        })
    }

    fn run(&self, command: &[&str]) -> Run<'a> {
        // Systems boot slowly without hardware virtualisation.
        run(self.job, &self.proxy.address, command).limit(420)
    }

    fn sh(&self, script: &str) -> Run<'a> {
        self.run(&["sh", "-c", script])
    }

    /// Boots what has been asked for; its metadata service fails for `late` seconds.
    fn boot(&self, late: u64) -> Instance {
        self.boot_with(late, &[])
    }

    /// With further arguments of QEMU's.
    fn boot_with(&self, late: u64, args: &[&str]) -> Instance {
        let facts = self.moto.ask(include_str!("machine.py"), &[]);
        let user_data = facts["user-data"].as_str().unwrap();
        let user_data = user_data.replace(&self.proxy.address, STORE);
        let metadata = Metadata::start(Duration::from_secs(late), &user_data);
        let metadata = metadata.with_store(&self.proxy.address);
        let disk = self.job.beside("disk.img");
        copy_sparse(self.image, &disk);
        Instance {
            id: facts["id"].as_str().unwrap().to_owned(),
            machine: Machine::start(self.job, &disk, &[&metadata.args()[..], args].concat()),
            metadata,
        }
    }

    /// Ends it as the cloud does.
    fn terminate(&self, instance: Instance) {
        drop(instance.machine);
        let end = "import boto3, sys; boto3.client('ec2').terminate_instances(InstanceIds=sys.argv[1:]); print('{}')";
        self.moto.ask(end, &[&instance.id]);
    }

    /// Every request was signed as the cloud's own library signs it.
    fn signatures_are_true(&self) {
        let seen = self.proxy.seen();
        let requests = seen.iter().map(|one| {
            let body: String = one.body.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"head": one.head, "body": body})
        });
        let requests: Vec<Value> = requests.collect();
        let path = self.job.beside("requests.json");
        fs::write(&path, Value::from(requests).to_string()).unwrap();
        let program = include_str!("courier.py");
        let checked = self.moto.ask(program, &[path.to_str().unwrap()]);
        let wrong = checked["wrong"].as_array().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        let count = |what: &str| checked[what].as_u64().unwrap();
        assert!(count("by header") > 5 && count("by URL") > 5, "{checked}");
    }
}

/// What the command gets and leaves, with a metadata service that is late, and a store that is busy.
#[test]
fn a_job_runs_on_a_machine_of_its_own() {
    let Some(job) = Job::new() else { return };
    let busy = |number, request: &Request| match request.is_of_machine()
        && number % 2 == 0
        && !request.what.contains("control")
    {
        true => Fate::Answer(503, String::from("<Error><Code>SlowDown</Code></Error>")),
        false => Fate::Pass,
    };
    let Some(cloud) = Cloud::start(&job, busy) else {
        return;
    };
    job.put("large", noise(3 << 20));
    job.put("removed", "");
    job.script("own", "#!/bin/sh\necho own");
    let script = "id -u; ./own; cat; echo $LONG | wc -c; printf '%s|' \"$@\" >&2; cat large large >twice; rm removed
        ln -s large link; mkdir -m 700 new; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c X-Amz-Signatur[e]
        cat large; exit 37";
    let words = ["sh", "-c", script, "sh", "a b", "", "*", "\u{e4}\n\\"];
    let long = format!("LONG={}", "x".repeat(20_000));
    let running = cloud
        .run(&words)
        .with(&["-v", "--env", &long, "--sync-deletes"])
        .bytes("to stdin\n")
        .start();
    let mut instance = cloud.boot(20);
    let done = running.finish().exits(37);
    let mut expected = format!("{}\nown\nto stdin\n20001\n0\n", job.site.user.uid).into_bytes();
    expected.extend(noise(3 << 20));
    assert!(done.stdout == expected, "{}", instance.machine.says());
    let done = done.says(&["a b||*|\u{e4}\n\\|", &instance.id]);
    let twice = fs::read(job.path().join("twice")).unwrap();
    assert!(twice == noise(3 << 20).repeat(2));
    assert_eq!(
        fs::read_link(job.path().join("link")).unwrap(),
        Path::new("large")
    );
    assert!(!job.has("removed") && job.path().join("new").is_dir());
    // By itself, whatever the launcher does.
    instance.machine.ends();
    let says = instance.machine.says();
    assert!(says.contains("trying again"), "{says}");
    for text in [&says, &done.stderr] {
        for hidden in [SECRET, "X-Amz-Signature"] {
            assert!(!text.contains(hidden), "{text}");
        }
    }
    nothing_is_left(&cloud.moto, 1);
    cloud.signatures_are_true();
}

/// Also a job that gets a signal before.
#[test]
fn a_spot_machine_that_is_taken_back_saves_results() {
    let Some(job) = Job::new() else { return };
    let Some(cloud) = Cloud::start(&job, |_, _| Fate::Pass) else {
        return;
    };
    let script = "trap 'echo usr1' USR1; trap 'echo saved-late >made; exit 9' TERM; echo ready
        while :; do sleep 1; done";
    let running = cloud.sh(script).start();
    let mut instance = cloud.boot(0);
    running.until_it_prints("ready\n");
    running.signal(libc::SIGUSR1);
    running.until_it_prints("usr1\n");
    let notice = r#"{"action": "terminate", "time": "2026-11-23T08:22:00Z"}"#;
    instance.metadata.take_back(notice);
    let done = running.finish().exits(9);
    done.says(&["the cloud takes the machine back: terminate at 2026-11-23T08:22:00Z"]);
    assert_eq!(job.read("made"), "saved-late\n");
    instance.machine.ends();
    nothing_is_left(&cloud.moto, 1);
}

#[test]
fn what_was_stored_of_a_machine_that_is_gone_is_there() {
    let Some(job) = Job::new() else { return };
    let Some(cloud) = Cloud::start(&job, |_, _| Fate::Pass) else {
        return;
    };
    let running = cloud.sh("echo so far; sleep 1000").start();
    let instance = cloud.boot(0);
    running.until_it_prints("so far\n");
    cloud.terminate(instance);
    let done = running.finish().exits(125).prints("so far\n");
    done.says(&["terminated by someone else"]);
    nothing_is_left(&cloud.moto, 1);
}

#[test]
fn a_machine_that_is_rebooted_does_not_run_the_job_again() {
    let Some(job) = Job::new() else { return };
    let Some(cloud) = Cloud::start(&job, |_, _| Fate::Pass) else {
        return;
    };
    // The first pause is for the output to be stored.
    let script = "echo so far; sleep 8; echo b >/proc/sysrq-trigger; sleep 1000";
    let running = cloud.sh(script).with(&["--root"]).start();
    let mut instance = cloud.boot_with(0, &["-action", "reboot=reset"]);
    let done = running.finish().exits(125).prints("so far\n");
    done.says(&["starting the job", "the machine was started again"]);
    instance.machine.ends();
    let starts = instance.machine.says().matches("login:").count();
    assert!(starts <= 2, "{}", instance.machine.says());
    nothing_is_left(&cloud.moto, 1);
}

/// A time limit, SIGTERM, and a command that is not there.
#[test]
fn jobs_end_as_everywhere() {
    let Some(job) = Job::new() else { return };
    let Some(cloud) = Cloud::start(&job, |_, _| Fate::Pass) else {
        return;
    };
    let finish = |running: Running| {
        let mut instance = cloud.boot(0);
        let done = running.finish();
        instance.machine.ends();
        done
    };
    let run = cloud.run(&["no-such-command"]);
    finish(run.start()).exits(127).says(&["no-such-command"]);
    let stubborn = cloud.sh("echo x >made; trap '' TERM; sleep 1000");
    let limited = stubborn.with(&["--time-limit", "140s", "--grace", "1s"]);
    let done = finish(limited.start()).exits(124);
    assert!(done.elapsed >= Duration::from_secs(140));
    assert_eq!(job.read("made"), "x\n");
    let running = cloud
        .sh("trap 'echo saved >made; exit 5' TERM; echo ready; while :; do sleep 1; done")
        .start();
    let mut instance = cloud.boot(0);
    running.until_it_prints("ready\n");
    running.signal(libc::SIGTERM);
    running.finish().exits(5);
    assert_eq!(job.read("made"), "saved\n");
    instance.machine.ends();
    nothing_is_left(&cloud.moto, 3);
}

#[test]
fn a_contract_that_cannot_be_fetched_any_more_is_reported() {
    let Some(job) = Job::new() else { return };
    let expired = |_, request: &Request| match request.is_of_machine()
        && request.what.contains("/document")
    {
        true => Fate::Answer(
            403,
            String::from(
                "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            ),
        ),
        false => Fate::Pass,
    };
    let Some(cloud) = Cloud::start(&job, expired) else {
        return;
    };
    let running = cloud.run(&["true"]).start();
    let mut instance = cloud.boot(0);
    let done = running.finish().exits(125);
    done.says(&["fetching the contract", "the URL has expired"]);
    instance.machine.ends();
    assert_eq!(left(&cloud.moto).1, Vec::<String>::new());
}
