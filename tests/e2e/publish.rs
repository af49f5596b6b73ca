//! `apppot image publish ec2`: into a cloud on this machine, and what it does about trouble.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::import::{image, text};
use crate::support::moto::{Fate, Moto, Proxy, Request};
use crate::support::tools::{ext4, loaderless_disk, sha256};
use crate::support::{eventually, Job, Run};

fn publish<'a>(job: &'a Job, disk: &Path, address: &str) -> Run<'a> {
    // Each test's journals are its own.
    let cache = job.beside("cache");
    let words = ["publish", "ec2", text(disk), "--json"];
    let run = image(job, &words).cloud(address);
    run.env("XDG_CACHE_HOME", cache)
}

/// Runs it; what it prints.
fn published(run: Run<'_>) -> Value {
    let done = run.go().exits(0);
    serde_json::from_str(&done.text()).unwrap()
}

/// Fails unless the cloud has the disk, as its own client sees it.
fn cloud_has(moto: &Moto, disk: &Path, printed: &Value) -> Value {
    let (id, snapshot) = (printed["image"].as_str().unwrap(), &printed["snapshot"]);
    let size = fs::metadata(disk).unwrap().len().to_string();
    let arguments = [id, snapshot.as_str().unwrap(), &size];
    let found = moto.ask(include_str!("publish.py"), &arguments);
    let digest = sha256(disk);
    assert_eq!(found["sha256"], Value::from(&digest[..]), "{found}");
    assert_eq!(found["blocks"], printed["blocks"], "{found}");
    for good in ["rest-is-zero", "blocks-are-good"] {
        assert_eq!(found[good], true, "{good}: {found}");
    }
    for of in ["image", "snapshot"] {
        assert_eq!(found[of]["apppot:sha256"], Value::from(&digest[..]));
        assert_eq!(found[of]["Name"], printed["name"]);
    }
    found
}

fn pass(_: usize, _: &Request) -> Fate {
    Fate::Pass
}

#[test]
fn an_image_is_published_once() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = Moto::start() else { return };
    let proxy = Proxy::start(&moto.address, pass);
    let disk = loaderless_disk(&job, "small");
    let first = published(publish(&job, &disk, &proxy.address));
    let found = cloud_has(&moto, &disk, &first);
    assert_eq!(first["new"], true);
    assert_eq!(first["blocks"], first["blocks-sent"]);
    let blocks = first["blocks"].as_u64().unwrap();
    // Of 121 blocks most are holes.
    assert!((5..100).contains(&blocks), "{blocks}");
    assert_eq!(proxy.count("PUT /snapshots/") as u64, blocks);
    let seen = proxy.seen();
    let end = seen
        .iter()
        .find(|one| one.what.contains("/completion/"))
        .unwrap();
    assert_eq!(
        found["aggregate"],
        Value::from(&end.headers["x-amz-checksum"][..])
    );
    assert_eq!(end.headers["x-amz-changedblockscount"], blocks.to_string());
    let again = published(publish(&job, &disk, &proxy.address));
    assert_eq!(
        (&again["image"], &again["new"]),
        (&first["image"], &Value::from(false))
    );
    assert_eq!(proxy.count("PUT /snapshots/") as u64, blocks);
    // For people: the id alone, for it is used in scripts.
    let words = ["publish", "ec2", text(&disk), "--name", "other"];
    let done = image(&job, &words).cloud(&proxy.address).go().exits(0);
    let done = done.prints(&format!("{}\n", first["image"].as_str().unwrap()));
    done.says(&["published before"]);
    let left = fs::read_dir(job.beside("cache/apppot/publish")).unwrap();
    assert_eq!(left.count(), 0);
}

/// What EC2 answers when it refuses.
fn refusal(code: &str) -> String {
    format!("<Response><Errors><Error><Code>{code}</Code><Message>No.</Message></Error></Errors></Response>")
}

/// A proxy at which all blocks but the first `arriving` are stuck, until it is told otherwise.
fn stuck(moto: &Moto, arriving: usize) -> (Proxy, Arc<AtomicBool>) {
    let is_stuck = Arc::new(AtomicBool::new(true));
    let (asked, arrived) = (Arc::clone(&is_stuck), AtomicUsize::new(0));
    let proxy = Proxy::start(&moto.address, move |_, one| {
        let is_late = one.is_block() && arrived.fetch_add(1, Relaxed) >= arriving;
        match is_late && asked.load(Relaxed) {
            true => Fate::Stall,
            false => Fate::Pass,
        }
    });
    (proxy, is_stuck)
}

/// Kills an upload of which `arriving` blocks have arrived.
fn kill_upload(job: &Job, disk: &Path, proxy: &Proxy, arriving: usize) {
    let running = publish(job, disk, &proxy.address).start();
    let journals = job.beside("cache/apppot/publish");
    eventually("blocks are noted and stuck", || {
        let journal = fs::read_dir(&journals).ok().and_then(|mut all| all.next());
        let text = journal.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        text.is_some_and(|text| text.lines().count() == 1 + arriving)
            && proxy.count("PUT ") > arriving
    });
    drop(running);
}

#[test]
fn an_upload_that_was_killed_goes_on() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = Moto::start() else { return };
    let disk = loaderless_disk(&job, "small");
    let (proxy, is_stuck) = stuck(&moto, 5);
    kill_upload(&job, &disk, &proxy, 5);
    is_stuck.store(false, Relaxed);
    let printed = published(publish(&job, &disk, &proxy.address));
    cloud_has(&moto, &disk, &printed);
    let number = |name: &str| printed[name].as_u64().unwrap();
    assert_eq!(number("blocks-sent"), number("blocks") - 5);
    let starts = proxy
        .seen()
        .iter()
        .filter(|one| one.what == "POST /snapshots")
        .count();
    assert_eq!(starts, 1);
}

#[test]
fn a_snapshot_that_the_cloud_gave_up_is_begun_anew() {
    let Some(job) = Job::new() else { return };
    let disk = loaderless_disk(&job, "small");
    let Some(moto) = Moto::start() else { return };
    let (proxy, is_stuck) = stuck(&moto, 5);
    kill_upload(&job, &disk, &proxy, 5);
    is_stuck.store(false, Relaxed);
    moto.forget();
    let printed = published(publish(&job, &disk, &proxy.address));
    cloud_has(&moto, &disk, &printed);
    assert_eq!(printed["blocks-sent"], printed["blocks"]);
}

#[test]
fn trouble_is_borne() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = Moto::start() else { return };
    let disk = loaderless_disk(&job, "small");
    let throttled = r#"{"__type":"RequestThrottledException","message":"slow"}"#;
    let proxy = Proxy::start(&moto.address, move |number, _| match number % 8 {
        1 => Fate::Answer(503, refusal("RequestLimitExceeded")),
        2 => Fate::Answer(400, throttled.to_owned()),
        4 => Fate::Lose,
        _ => Fate::Pass,
    });
    let printed = published(publish(&job, &disk, &proxy.address));
    cloud_has(&moto, &disk, &printed);
}

/// Registering is no request that can be made twice: the second one finds the name taken.
#[test]
fn an_image_whose_registration_was_not_heard_of_is_found() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = Moto::start() else { return };
    let disk = loaderless_disk(&job, "small");
    let snapshot = Mutex::new(String::new());
    let proxy = Proxy::start(&moto.address, move |_, one| {
        let mut snapshot = snapshot.lock().unwrap();
        let name = one.parameter("Filter.1.Name");
        match (&one.what[..], name.as_deref()) {
            ("EC2 RegisterImage", _) => {
                *snapshot = one
                    .parameter("BlockDeviceMapping.1.Ebs.SnapshotId")
                    .unwrap();
                Fate::Answer(400, refusal("InvalidAMIName.Duplicate"))
            }
            ("EC2 DescribeImages", Some("name")) => {
                let item = |id: &str, snapshot: &str| {
                    format!("<item><imageId>{id}</imageId><imageState>available</imageState><blockDeviceMapping><item><ebs><snapshotId>{snapshot}</snapshotId></ebs></item></blockDeviceMapping></item>")
                };
                let items = [item("ami-1", "snap-1"), item("ami-2", &snapshot)].concat();
                Fate::Answer(
                    200,
                    format!("<R xmlns=\"urn:x\"><imagesSet>{items}</imagesSet></R>"),
                )
            }
            ("EC2 CreateTags", _) => Fate::Answer(200, String::from("<R/>")),
            _ => Fate::Pass,
        }
    });
    let printed = published(publish(&job, &disk, &proxy.address));
    assert_eq!(printed["image"], "ami-2");
}

/// Lists come in pages, as many as the cloud likes.
#[test]
fn an_image_on_the_second_page_is_found() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = Moto::start() else { return };
    let disk = loaderless_disk(&job, "small");
    let proxy = Proxy::start(&moto.address, move |_, one| {
        let page = match one.parameter("NextToken").as_deref() {
            None => "<R><imagesSet/><nextToken>a+/ b</nextToken></R>",
            Some("a%2B%2F%20b") => "<R><imagesSet><item><imageId>ami-7</imageId><imageState>available</imageState></item></imagesSet></R>",
            Some(_) => "<R/>",
        };
        Fate::Answer(200, page.to_owned())
    });
    let printed = published(publish(&job, &disk, &proxy.address));
    assert_eq!(
        (&printed["image"], &printed["new"]),
        (&Value::from("ami-7"), &Value::from(false))
    );
}

/// A cloud that examines every signature.
#[test]
fn signatures_are_right_and_secrets_stay() {
    let Some(job) = Job::new() else { return };
    let Some(moto) = Moto::with(&[("INITIAL_NO_AUTH_ACTION_COUNT", "3")]) else {
        return;
    };
    let disk = loaderless_disk(&job, "small");
    let key = moto.ask(include_str!("user.py"), &[]);
    let (id, secret) = (key["id"].as_str().unwrap(), key["secret"].as_str().unwrap());
    let profile = format!("[x]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    let profile = job.put("credentials", profile);
    let run = |secret: &str| {
        let run = publish(&job, &disk, &moto.address);
        run.with(&["-vv"])
            .env("AWS_ACCESS_KEY_ID", id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
    };
    let wrong = "wrong+secret/seen=nowhere";
    let done = run(wrong).go().exits(125);
    assert!(!done.stderr.contains(wrong) && !done.text().contains(wrong));
    done.says(&["AuthFailure", "clock"]);
    let done = run(secret).go().exits(0);
    assert!(!done.stderr.contains(secret) && !done.text().contains(secret));
    // The same key, from a profile; and the cloud knows the image now.
    let run = publish(&job, &disk, &moto.address)
        .without_env("AWS_ACCESS_KEY_ID")
        .without_env("AWS_SECRET_ACCESS_KEY")
        .env("AWS_SHARED_CREDENTIALS_FILE", profile)
        .env("AWS_PROFILE", "x");
    assert_eq!(published(run)["new"], false);
}

#[test]
fn what_cannot_be_published_is_refused() {
    let Some(job) = Job::new() else { return };
    let disk = loaderless_disk(&job, "small");
    let nowhere = "127.0.0.1:1";
    let refused = |run: Run<'_>, names: &[&str]| run.go().exits(125).says(names);
    let partition = ext4(&job, "partition");
    refused(
        publish(&job, &partition, nowhere),
        &["partition", "--layout disk"],
    );
    refused(
        publish(&job, &disk, nowhere),
        &["EC2", nowhere, "AWS_ENDPOINT_URL"],
    );
    let unset = |name: &str| publish(&job, &disk, nowhere).without_env(name);
    refused(unset("AWS_REGION"), &["no region", "AWS_REGION"]);
    refused(unset("AWS_SECRET_ACCESS_KEY"), &["AWS_SECRET_ACCESS_KEY"]);
    let alone = unset("AWS_SECRET_ACCESS_KEY").without_env("AWS_ACCESS_KEY_ID");
    refused(alone, &["no credentials", "aws configure"]);
    let denied = Proxy::start(nowhere, |_, _| {
        Fate::Answer(403, refusal("UnauthorizedOperation"))
    });
    refused(
        publish(&job, &disk, &denied.address),
        &["ec2:DescribeImages"],
    );
    // Neither endless nor senseless answers hang or crash it.
    let senseless = Proxy::start(nowhere, |_, _| Fate::Answer(200, "<a>".repeat(100_000)));
    refused(
        publish(&job, &disk, &senseless.address),
        &["cannot be understood"],
    );
    let name = ["--name", "a\nb"];
    publish(&job, &disk, nowhere).with(&name).go().exits(2);
}
