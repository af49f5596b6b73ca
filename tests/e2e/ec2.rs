//! `--backend ec2` and `apppot cloud`, in a cloud on this machine that boots nothing: the tests do what the
//! courier of an image does (`support/courier.rs`), so that the launcher goes all of its way.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use apppot_contract::Outcome;
use serde_json::{json, Value};

use crate::support::courier::{store, Machine};
use crate::support::moto::{Fate, Moto, Proxy, Request};
use crate::support::{eventually, noise, Job, Run};

const BUCKET: &str = "jobs-of-tests";
const IMAGE: &str = "ami-03cf127a";
/// Of `Run::cloud`.
pub(crate) const SECRET: &str = "never/to+be=seen";

/// A cloud with a bucket.
pub(crate) fn cloud() -> Option<Moto> {
    let moto = Moto::start()?;
    moto.make_bucket(BUCKET);
    Some(moto)
}

/// `apppot run --backend ec2 -- command` at this address.
pub(crate) fn run<'a>(job: &'a Job, address: &str, command: &[&str]) -> Run<'a> {
    let options = ["--backend", "ec2", "--image", IMAGE, "--ec2-bucket", BUCKET];
    job.run(command).with(&options).cloud(address).limit(120)
}

/// `apppot cloud WORDS`.
fn manage<'a>(job: &'a Job, address: &str, words: &[&str]) -> Run<'a> {
    let all = [&["cloud"], words, &["--ec2-bucket", BUCKET]].concat();
    job.apppot(&all).cloud(address)
}

/// States of machines and names of objects.
pub(crate) fn left(moto: &Moto) -> (Vec<String>, Vec<String>) {
    let left = moto.ask(include_str!("left.py"), &[BUCKET]);
    let texts = |key: &str| {
        let all = left[key].as_array().unwrap().iter();
        all.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    (texts("machines"), texts("objects"))
}

pub(crate) fn nothing_is_left(moto: &Moto, machines: usize) {
    let (states, objects) = left(moto);
    assert_eq!(states, vec!["terminated"; machines]);
    assert_eq!(objects, Vec::<String>::new());
}

fn pass(_: usize, _: &Request) -> Fate {
    Fate::Pass
}

fn refusal(code: &str) -> String {
    format!("<Response><Errors><Error><Code>{code}</Code><Message>No.</Message></Error></Errors></Response>")
}

/// A cloud that starts no machine, and says this.
fn refusing(moto: &Moto, code: &'static str) -> Proxy {
    Proxy::start(&moto.address, move |_, one| {
        match one.what == "EC2 RunInstances" {
            true => Fate::Answer(500, refusal(code)),
            false => Fate::Pass,
        }
    })
}

/// An answer of the price list, which this cloud has not.
fn price() -> String {
    let hour = r#"{"X": {"unit": "Hrs", "pricePerUnit": {"USD": "0.0456000000"}}}"#;
    let product = format!(r#"{{"terms": {{"OnDemand": {{"X": {{"priceDimensions": {hour}}}}}}}}}"#);
    json!({ "PriceList": [product] }).to_string()
}

#[test]
fn a_job_runs_in_a_cloud_and_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let proxy = Proxy::start(&moto.address, |_, one| {
        match one.headers.contains_key("x-amz-target") {
            true => Fate::Answer(200, price()),
            false => Fate::Pass,
        }
    });
    // Several segments each way.
    job.put("large", noise(3 << 20));
    job.put("unchanged", "a");
    let script = "cat large large > twice; cat; printf '%s|' \"$0\" \"$@\" >&2; cat large; exit 7";
    let words = ["sh", "-c", script, "a b", "", "*"];
    let words = [&words[..], &["\u{e4}\n"]].concat();
    let running = run(&job, &proxy.address, &words)
        .with(&["--memory", "3G", "--env", "A=secret-of-the-job", "-v"])
        .with(&["--ec2-disk", "19.5G", "--time-limit", "10h"])
        .env(
            "AWS_ENDPOINT_URL_PRICING",
            format!("http://{}", proxy.address),
        )
        .bytes(noise(2 << 20))
        .start();
    let mut machine = Machine::boot(&job, &moto);
    assert_eq!(machine.facts["type"], "t3.medium");
    assert_eq!(machine.facts["at-power-off"], "terminate");
    let tags = &machine.facts["tags"];
    assert_eq!(tags["apppot:job"], Value::from(&machine.contract.id[..]));
    assert_eq!(tags["apppot:image"], IMAGE);
    assert_eq!(tags["apppot:bucket"], BUCKET);
    assert!(tags["apppot:deadline"].as_str().unwrap().ends_with('Z'));
    let user_data = machine.facts["user-data"].as_str().unwrap();
    assert!(user_data.len() < 16 << 10 && !user_data.contains("secret"));
    machine.work();
    let done = running.finish().exits(7);
    let noise_of = |len| noise(len);
    assert_eq!(done.stdout, [noise_of(2 << 20), noise_of(3 << 20)].concat());
    let done = done.says(&["a b||*|\u{e4}\n|", &machine.id, "t3.medium"]);
    // Ten hours, and what the machine may take to end.
    let done = done.says(&["price:       0.0456 USD an hour, 0.47 USD at most"]);
    for hidden in [SECRET, "X-Amz-Signature", "secret-of-the-job"] {
        assert!(!done.stderr.contains(hidden), "{}", done.stderr);
    }
    let twice = fs::read(job.path().join("twice")).unwrap();
    assert_eq!(twice.len(), 6 << 20);
    nothing_is_left(&moto, 1);
    let seen = proxy.seen();
    let asked = seen
        .iter()
        .find(|one| one.what == "EC2 RunInstances")
        .unwrap();
    for (name, value) in [
        ("MetadataOptions.HttpTokens", "required"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("MaxCount", "1"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "20"),
    ] {
        assert_eq!(asked.parameter(name).as_deref(), Some(value));
    }
    assert!(asked.parameter("ClientToken").is_some());
}

#[test]
fn a_dry_run_asks_nobody_and_shows_no_secret() {
    let Some(job) = Job::new() else { return };
    let proxy = Proxy::start("127.0.0.1:1", pass);
    let dry = || run(&job, &proxy.address, &["true"]).with(&["--dry-run", "--ec2-spot"]);
    let done = dry().with(&["--ec2-group", "sg-1"]).go().exits(0);
    let done = done.shows(&[
        "apppot.arg=true",
        "apppot.store=results,http",
        "apppot.document=http",
        "InstanceType=t3.small",
        "HttpTokens=required",
        "SecurityGroupId.1=sg-1",
        "SpotOptions",
    ]);
    let json = dry().with(&["--json"]).go().exits(0);
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["run-instances"]["MaxCount"], "1");
    for text in [done.text(), json.text()] {
        for hidden in [SECRET, "X-Amz", "AKIDTEST"] {
            assert!(!text.contains(hidden), "{hidden}: {text}");
        }
    }
    assert_eq!(proxy.seen().len(), 0);
}

#[test]
fn a_cloud_without_capacity_is_said_and_nothing_left() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let proxy = refusing(&moto, "InsufficientInstanceCapacity");
    let done = run(&job, &proxy.address, &["true"]).go().exits(125);
    done.says(&[
        "InsufficientInstanceCapacity",
        IMAGE,
        "hint: the cloud has no such machine free",
    ]);
    assert_eq!(proxy.count("RunInstances"), 1);
    nothing_is_left(&moto, 0);
}

/// The machine is found by its tag when nobody heard that it was started.
#[test]
fn a_machine_whose_start_was_not_heard_of_is_ended() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let proxy = Proxy::start(&moto.address, |_, one| {
        match one.what == "EC2 RunInstances" {
            true => Fate::Lose,
            false => Fate::Pass,
        }
    });
    let lost = run(&job, &proxy.address, &["true"]).env("AWS_MAX_ATTEMPTS", "2");
    lost.go().exits(125).says(&["EC2", "cannot be reached"]);
    let seen = proxy.seen();
    let tokens = seen.iter().filter_map(|one| one.parameter("ClientToken"));
    let tokens: Vec<String> = tokens.collect();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0], tokens[1]);
    nothing_is_left(&moto, 2);
}

#[test]
fn a_machine_that_somebody_else_ends_is_a_failure_with_what_it_stored() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let running = run(&job, &moto.address, &["true"]).start();
    let mut machine = Machine::boot(&job, &moto);
    machine.announce();
    let directory = machine.take_files().to_owned();
    // What does not compress, so that the first file is in what arrives of the stream.
    fs::write(directory.join("first"), noise(300_000)).unwrap();
    fs::write(directory.join("second"), noise(700_000)).unwrap();
    store(&machine.contract.store.stdout, b"so far\n");
    let results = machine.results();
    store(&machine.contract.store.results, &results[..600_000]);
    let end = "import boto3, sys; boto3.client('ec2').terminate_instances(InstanceIds=sys.argv[1:]); print('{}')";
    moto.ask(end, &[&machine.id]);
    let done = running.finish().exits(125).prints("so far\n");
    done.says(&["terminated by someone else", "ended early", "console"]);
    assert_eq!(fs::read(job.path().join("first")).unwrap(), noise(300_000));
    assert!(!job.has("second"));
    nothing_is_left(&moto, 1);
}

#[test]
fn a_store_that_fails_for_a_while_ends_nothing() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let fails = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&fails);
    let proxy = Proxy::start(&moto.address, move |_, one| {
        match asked.load(Relaxed) && one.what.contains("list-type") {
            true => Fate::Answer(503, refusal("ServiceUnavailable")),
            false => Fate::Pass,
        }
    });
    let running = run(
        &job,
        &proxy.address,
        &["sh", "-c", "echo x > made; echo out"],
    )
    .start();
    let mut machine = Machine::boot(&job, &moto);
    fails.store(true, Relaxed);
    let before = proxy.count("list-type");
    eventually("it has been asked again", || {
        proxy.count("list-type") > before + 5
    });
    machine.work();
    fails.store(false, Relaxed);
    let done = running.finish().exits(0).prints("out\n");
    done.says(&["ServiceUnavailable", "asked again"]);
    assert_eq!(job.read("made"), "x\n");
    nothing_is_left(&moto, 1);
}

/// The report is there, and the output is not to be had: it is waited for.
#[test]
fn output_that_cannot_be_read_now_is_read_later() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let fails = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&fails);
    let proxy = Proxy::start(&moto.address, move |_, one| {
        let is_output = one.what.starts_with("GET") && one.what.contains("/stdout/");
        match asked.load(Relaxed) && is_output {
            true => Fate::Answer(503, refusal("SlowDownRead")),
            false => Fate::Pass,
        }
    });
    let running = run(&job, &proxy.address, &["sh", "-c", "echo out"]).start();
    let mut machine = Machine::boot(&job, &moto);
    machine.work();
    let before = proxy.count("/report");
    eventually("the report has been asked for, or the output again", || {
        proxy.count("/stdout/") > 8 || proxy.count("/report") > before
    });
    fails.store(false, Relaxed);
    running.finish().exits(0).prints("out\n");
    nothing_is_left(&moto, 1);
}

/// Another bucket's job of the same name is somebody else's.
#[test]
fn a_launch_that_fails_ends_no_other_machine() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let running = run(&job, &moto.address, &["true"])
        .with(&["--id", "nightly"])
        .start();
    let mut machine = Machine::boot(&job, &moto);
    moto.make_bucket("others");
    let proxy = refusing(&moto, "InsufficientInstanceCapacity");
    let words = [
        "--backend",
        "ec2",
        "--image",
        IMAGE,
        "--ec2-bucket",
        "others",
        "--id",
        "nightly",
    ];
    let other = job
        .run(&["true"])
        .with(&words)
        .cloud(&proxy.address)
        .limit(120);
    other
        .go()
        .exits(125)
        .says(&["InsufficientInstanceCapacity"]);
    // The machine says where its job is, whatever the configuration does.
    let listed = job.apppot(&["cloud", "logs", "nightly"]);
    let listed = listed.env("APPPOT_EC2_BUCKET", "others");
    listed.cloud(&moto.address).go().exits(0);
    // What cannot be read of one job hides no other.
    let hides = "import boto3; boto3.client('ec2').run_instances(ImageId='ami-03cf127a', MinCount=1, MaxCount=1, TagSpecifications=\
                 [{'ResourceType': 'instance', 'Tags': [{'Key': 'apppot:job', 'Value': 'a'}, {'Key': 'apppot:bucket', 'Value': 'gone'}]}]); \
                 print('{}')";
    moto.ask(hides, &[]);
    let listed = job.apppot(&["cloud", "ls"]).cloud(&moto.address);
    let listed = listed.go().exits(0).says(&["job 'a'", "NoSuchBucket"]);
    listed.shows(&["nightly"]);
    machine.work();
    running.finish().exits(0);
}

#[test]
fn signals_reach_the_job_and_results_come_back() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let running = run(&job, &moto.address, &["true"])
        .with(&["--grace", "1s"])
        .start();
    let mut machine = Machine::boot(&job, &moto);
    machine.announce();
    let directory = machine.take_files().to_owned();
    store(&machine.contract.store.stdout, b"started\n");
    running.until_it_prints("started\n");
    running.signal(libc::SIGUSR1);
    machine.until_signals("10\n");
    running.signal(libc::SIGTERM);
    machine.until_signals("10\n15\n");
    // It ignores that, so it is ended.
    machine.until_signals("10\n15\n9\n");
    fs::write(directory.join("saved"), "so far").unwrap();
    store(&machine.contract.store.results, &machine.results());
    machine.report(
        Outcome::Signalled { signal: 15 },
        &["noted\u{1b}[2J by the machine"],
    );
    let done = running
        .finish()
        .exits(143)
        .says(&["warning: noted[2J by the machine"]);
    assert!(!done.stderr.contains('\u{1b}'));
    assert_eq!(job.read("saved"), "so far");
    nothing_is_left(&moto, 1);
}

/// Nothing runs yet, so there is nothing to wait for.
#[test]
fn a_machine_that_boots_is_ended_at_once() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let running = run(&job, &moto.address, &["true"]).start();
    Machine::boot(&job, &moto);
    running.signal(libc::SIGINT);
    let done = running.finish().exits(130);
    assert!(done.elapsed < Duration::from_secs(60), "{:?}", done.elapsed);
    nothing_is_left(&moto, 1);
}

#[test]
fn a_time_limit_that_passes_before_the_machine_is_up_is_one() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let done = run(&job, &moto.address, &["true"])
        .with(&["--time-limit", "3s"])
        .go();
    done.exits(124).says(&["before the command was started"]);
    let (machines, objects) = left(&moto);
    assert!(
        machines.iter().all(|state| state == "terminated"),
        "{machines:?}"
    );
    assert!(objects.is_empty(), "{objects:?}");
}

#[test]
fn what_a_broken_machine_stores_is_not_believed() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let running = run(&job, &moto.address, &["true"]).start();
    let machine = Machine::boot(&job, &moto);
    store(&machine.contract.store.results, &noise(100_000));
    store(machine.contract.store.report.as_slice(), &noise(100_000));
    running.finish().exits(125).says(&["its report is none"]);
    let running = run(&job, &moto.address, &["true"]).start();
    let machine = Machine::boot(&job, &moto);
    store(&machine.contract.store.results, &noise(100_000));
    machine.report(Outcome::Exited { status: 0 }, &[]);
    let done = running.finish().exits(125);
    done.says(&["not all of the job's results", "apppot cloud fetch"]);
}

/// From another process, and after the launcher was killed.
#[test]
fn a_job_outlives_its_launcher() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let script = "echo made > made; echo out; echo err >&2; exit 3";
    let running = run(&job, &moto.address, &["sh", "-c", script]).start();
    let mut machine = Machine::boot(&job, &moto);
    drop(running);
    let id = machine.contract.id.clone();
    let listed = manage(&job, &moto.address, &["ls"]).go().exits(0);
    listed.shows(&[&id, "running", &machine.id, script]);
    let early = manage(&job, &moto.address, &["fetch", &id]).go().exits(125);
    early.says(&["has not ended", "apppot cloud wait"]);
    machine.work();
    manage(&job, &moto.address, &["wait", &id]).go().exits(3);
    let logs = manage(&job, &moto.address, &["logs", &id]).go().exits(0);
    logs.prints("out\n").says(&["err\n"]);
    let listed = manage(&job, &moto.address, &["ls", "--json"]).go().exits(0);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        (&listed[0]["job"], &listed[0]["state"]),
        (&Value::from(&id[..]), &Value::from("exited 3"))
    );
    let elsewhere = job.directory_beside("elsewhere");
    let fetch = ["fetch", &id, "--workdir", elsewhere.to_str().unwrap()];
    let few = [&fetch[..], &["--output-limit", "1"]].concat();
    manage(&job, &moto.address, &few).go().exits(125);
    assert!(!elsewhere.join("made").exists());
    manage(&job, &moto.address, &fetch).go().exits(0);
    assert_eq!(
        fs::read_to_string(elsewhere.join("made")).unwrap(),
        "made\n"
    );
    assert!(!job.has("made"));
    assert_eq!(left(&moto).1, Vec::<String>::new());
    let gone = manage(&job, &moto.address, &["fetch", &id]).go().exits(125);
    gone.says(&["there is no job", "apppot cloud ls"]);
    // The machine powers itself off, which this cloud's do not.
    manage(&job, &moto.address, &["reap", &id]).go().exits(0);
    nothing_is_left(&moto, 1);
}

#[test]
fn a_detached_job_is_followed_and_reaped() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = cloud() else { return };
    let started = run(&job, &moto.address, &["echo", "out"])
        .with(&["--detach"])
        .go();
    let id = started.exits(0).text().trim().to_owned();
    let mut machine = Machine::boot(&job, &moto);
    assert_eq!(machine.contract.id, id);
    let logs = manage(&job, &moto.address, &["logs", "--follow", &id]).start();
    machine.work();
    logs.finish().exits(0).prints("out\n");
    manage(&job, &moto.address, &["wait", &id]).go().exits(0);
    // A machine that is past its deadline, one that is not, one that is nobody's, and another bucket's of this name.
    let make = "import boto3, json, sys\nec2 = boto3.client('ec2')\nfor tags in json.loads(sys.argv[1]):\n    \
                ec2.run_instances(ImageId='ami-03cf127a', MinCount=1, MaxCount=1, TagSpecifications=[{'ResourceType': \
                'instance', 'Tags': [{'Key': key, 'Value': tags[key]} for key in tags]}])\nprint('{}')";
    let past = "2020-01-01T00:00:00Z";
    let tags = serde_json::json!([
        {"apppot:job": "late", "apppot:deadline": past, "apppot:bucket": BUCKET},
        {"other": "x", "apppot:deadline": past},
        {"apppot:job": id, "apppot:bucket": "others"},
    ]);
    moto.ask(make, &[&tags.to_string()]);
    let reaped = manage(&job, &moto.address, &["reap"]).go().exits(0);
    assert!(reaped.text().starts_with("late  i-"), "{}", reaped.text());
    let (mut states, _) = left(&moto);
    states.sort();
    assert_eq!(states, ["running", "running", "running", "terminated"]);
    // What is not there keeps nothing else.
    let reaped = manage(&job, &moto.address, &["reap", "none", &id]).go();
    reaped
        .exits(125)
        .shows(&[&id])
        .says(&["there is no job 'none'"]);
    let (mut states, objects) = left(&moto);
    states.sort();
    assert_eq!(states, ["running", "running", "terminated", "terminated"]);
    assert_eq!(objects, Vec::<String>::new());
    for words in [["wait", "a*"], ["reap", "none"]] {
        manage(&job, &moto.address, &words).go().exits(125);
    }
}

#[test]
fn what_a_cloud_has_not_is_refused_before_anything_is_asked() {
    let Some(job) = Job::new() else { return };
    let proxy = Proxy::start("127.0.0.1:1", pass);
    let with = |options: &[&str], says: &[&str]| {
        let run = run(&job, &proxy.address, &["true"]).with(options);
        run.go().exits(125).says(says);
    };
    with(&["--overlay", "x"], &["--overlay", "image publish ec2"]);
    with(&["--bind", "/tmp"], &["--bind", "job directory"]);
    with(&["--tty"], &["--tty"]);
    with(&["--channel", "link"], &["--channel", "bucket"]);
    with(&["--network", "user"], &["--network", "--ec2-subnet"]);
    with(&["--memory", "4000G"], &["4000G", "--ec2-type"]);
    with(&["--time-limit", "200h"], &["seven days", "--time-limit"]);
    let of_file = job
        .run(&["true"])
        .with(&["--backend", "ec2", "--image", "x.img"]);
    of_file
        .cloud(&proxy.address)
        .go()
        .exits(125)
        .says(&["no image of EC2", "image publish ec2"]);
    let words = ["--backend", "ec2", "--image", IMAGE];
    let without = job.run(&["true"]).with(&words).cloud(&proxy.address);
    without.go().exits(125).says(&["bucket", "aws s3 mb"]);
    job.run(&["true"])
        .with(&["--detach"])
        .go()
        .exits(125)
        .says(&["--detach", "--backend ec2"]);
    let here = job.run(&["true"]).with(&["--image", IMAGE]);
    here.go().exits(125).says(&["--backend ec2"]);
    assert_eq!(proxy.seen().len(), 0);
}
