//! Jobs of machines that only an object store reaches: an image that boots by itself, in a cloud made of a
//! metadata service and moto's S3.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use apppot_contract::{
    document, Boot, Channel, Contract, Files, Outcome, Pointer, Report, Stdin, Url, User, Workload,
};
use apppot_snapshot::transfer::{list, pack, Cargo};
use serde_json::Value;

use crate::layout_disk::{Machine, Metadata};
use crate::support::moto::{Fate, Moto, Proxy};
use crate::support::tools::{copy_sparse, tool};
use crate::support::{boot_disk, Backend, Job};

const CLIENT: &str = include_str!("courier.py");

/// The store as the machine sees it.
const STORE: &str = "http://169.254.169.253";

/// A cloud, and a job that is to run in it.
struct Cloud<'a> {
    job: &'a Job,
    moto: Moto,
    urls: HashMap<String, Url>,
}

impl<'a> Cloud<'a> {
    fn start(job: &'a Job) -> Option<Self> {
        let moto = Moto::start()?;
        let mut words = vec![String::from("sign"), STORE.to_owned()];
        words.extend(
            ["get:document", "get:files.0", "get:stdin.0", "get:control"].map(String::from),
        );
        words.push(String::from("put:report"));
        for stream in ["stdout", "stderr", "results"] {
            words.extend((0..2).map(|index| format!("put:{stream}.{index}")));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Value::Object(signed) = moto.ask(CLIENT, &words) else {
            panic!("no URLs");
        };
        let urls = signed.into_iter().map(|(name, url)| {
            let url = Url::new(url.as_str().unwrap()).unwrap();
            (name, url)
        });
        Some(Cloud {
            job,
            urls: urls.collect(),
            moto,
        })
    }

    fn url(&self, name: &str) -> Url {
        self.urls[name].clone()
    }

    /// Puts the object there.
    fn put(&self, name: &str, content: &[u8]) {
        let path = self.job.beside(name);
        fs::write(&path, content).unwrap();
        self.moto
            .ask(CLIENT, &["put", name, path.to_str().unwrap()]);
    }

    /// Every object.
    fn objects(&self) -> HashMap<String, Vec<u8>> {
        let Value::Object(found) = self.moto.ask(CLIENT, &["get"]) else {
            panic!("no objects");
        };
        let bytes = |text: &str| {
            let digits = text.as_bytes().chunks(2);
            let text = digits.map(|pair| std::str::from_utf8(pair).unwrap());
            text.map(|pair| u8::from_str_radix(pair, 16).unwrap())
                .collect()
        };
        let found = found.into_iter();
        found
            .map(|(name, hex)| (name, bytes(hex.as_str().unwrap())))
            .collect()
    }

    /// A contract for this script, which gets what is in the job directory and this input.
    fn contract(&self, script: &str, input: &[u8]) -> Contract {
        let listing = list(self.job.path(), false).unwrap();
        let items: Vec<_> = listing.items.iter().collect();
        let mut stream = Vec::new();
        pack(
            self.job.path(),
            Cargo::Files,
            &items,
            &mut stream,
            &mut |_| {},
        )
        .unwrap();
        let path = self.job.beside("stream");
        fs::write(&path, stream).unwrap();
        tool("zstd", &["-q", "-f", path.to_str().unwrap()]);
        self.put("files.0", &fs::read(self.job.beside("stream.zst")).unwrap());
        self.put("stdin.0", input);
        let mut contract = Contract {
            boot: Boot::System,
            deadline: Some(SystemTime::now() + Duration::from_secs(600)),
            files: Some(Files {
                channel: Channel::Link,
                target: "/job".into(),
                ring: None,
                results: Vec::new(),
            }),
            jobdir: "/job".into(),
            user: Some(User {
                name: "jo".into(),
                uid: 1234,
                group: "jo".into(),
                gid: 1234,
                groups: Vec::new(),
                account: None,
            }),
            workload: Workload::Command(["sh", "-c", script].map(Into::into).into()),
            stdin: Stdin::Link,
            ..Contract::default()
        };
        let segments = |stream: &str| {
            (0..2)
                .map(|index| self.url(&format!("{stream}.{index}")))
                .collect()
        };
        let store = &mut contract.store;
        (store.files, store.stdin) = (vec![self.url("files.0")], vec![self.url("stdin.0")]);
        (store.stdout, store.stderr) = (segments("stdout"), segments("stderr"));
        store.results = segments("results");
        store.report = Some(self.url("report"));
        store.control = Some(self.url("control"));
        assert_eq!(contract.check(), Ok(()));
        contract
    }

    /// User-data that points to the contract, which is there.
    fn user_data(&self, contract: &Contract) -> String {
        self.put("document", document::encode(contract).as_bytes());
        document::encode_pointer(&Pointer {
            url: self.url("document"),
            deadline: contract.deadline.unwrap(),
            grace: contract.grace,
            report: contract.store.report.clone(),
        })
    }

    fn report(&self) -> Report {
        Report::decode(&self.objects()["report"]).unwrap()
    }

    /// What the job has changed, as the stream has it.
    fn results(&self) -> String {
        let path = self.job.beside("results.zst");
        fs::write(&path, &self.objects()["results.0"]).unwrap();
        tool("zstd", &["-q", "-d", "-c", path.to_str().unwrap()])
    }
}

/// A machine of the cloud, with a copy of the image.
fn boot(job: &Job, image: &Path, metadata: &Metadata) -> Machine {
    let disk = job.beside("disk.img");
    copy_sparse(image, &disk);
    Machine::start(job, &disk, &metadata.args())
}

/// What every such test begins with.
fn on_qemu() -> Option<(Job, &'static Path)> {
    let job = Job::new()?;
    if job.site.backend != Backend::Qemu {
        return None;
    }
    Some((job, boot_disk()?))
}

/// Also with a store that is away for a while, and a document that user-data does not hold.
#[test]
fn a_job_goes_through_an_object_store() {
    let Some((job, image)) = on_qemu() else {
        return;
    };
    let Some(cloud) = Cloud::start(&job) else {
        return;
    };
    // Everything that is asked for fails at first.
    let proxy = Proxy::start(&cloud.moto.address, |number, request| {
        match request.what.contains("control") || number % 2 == 1 {
            true => Fate::Pass,
            false => Fate::Answer(503, String::from("<Error><Code>SlowDown</Code></Error>")),
        }
    });
    job.put("given", "given\n");
    job.put("removed", "");
    let script = "id -u; cat given; cat; echo $LONG | wc -c; echo made-inside >made; rm removed
        cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c X-Amz-Signatur[e]
        echo err >&2; exit 37";
    let mut contract = cloud.contract(script, b"to stdin\n");
    contract.env = vec![("LONG".into(), "x".repeat(20_000).into())];
    let metadata =
        Metadata::start(&job, 0, &cloud.user_data(&contract)).with_store(&job, &proxy.address);
    let mut machine = boot(&job, image, &metadata);
    machine.ends();
    let objects = cloud.objects();
    let text = |name: &str| String::from_utf8_lossy(&objects[name]).into_owned();
    let report = cloud.report();
    assert_eq!(
        report.outcome,
        Outcome::Exited { status: 37 },
        "{}",
        machine.says()
    );
    assert_eq!(text("stdout.0"), "1234\ngiven\nto stdin\n20001\n0\n");
    assert_eq!(text("stderr.0"), "err\n");
    let results = cloud.results();
    for name in ["apppot-results", "made-inside", "APPPOT.deleted=removed"] {
        assert!(results.contains(name), "{name}");
    }
    let says = machine.says();
    assert!(
        says.contains("trying again") && !says.contains("Signature"),
        "{says}"
    );
}

/// And a job that is sent a signal before.
#[test]
fn a_spot_machine_that_is_taken_back_saves_results() {
    let Some((job, image)) = on_qemu() else {
        return;
    };
    let Some(cloud) = Cloud::start(&job) else {
        return;
    };
    let script = "trap 'echo usr1' USR1; trap 'echo saved-late >made; exit 9' TERM; echo ready
        while :; do sleep 1; done";
    let contract = cloud.contract(script, b"");
    let metadata = Metadata::start(&job, 0, &cloud.user_data(&contract));
    let metadata = metadata.with_store(&job, &cloud.moto.address);
    let mut machine = boot(&job, image, &metadata);
    let prints = |text: &str| {
        let stdout = cloud.objects().remove("stdout.0");
        stdout.is_some_and(|stdout| stdout == text.as_bytes())
    };
    machine.until("the job's output", |_| prints("ready\n"));
    cloud.put("control", b"10\n");
    machine.until("the signal", |_| prints("ready\nusr1\n"));
    metadata.take_back(r#"{"action": "terminate", "time": "2026-11-23T08:22:00Z"}"#);
    machine.ends();
    let report = cloud.report();
    assert_eq!(
        report.outcome,
        Outcome::Exited { status: 9 },
        "{}",
        machine.says()
    );
    let note = "the cloud takes the machine back: terminate at 2026-11-23T08:22:00Z";
    assert_eq!(report.notes, [note]);
    assert!(cloud.results().contains("saved-late"));
}

/// A document that is not there, and a job that ignores its deadline.
#[test]
fn what_goes_wrong_is_reported_and_ends_the_machine() {
    let Some((job, image)) = on_qemu() else {
        return;
    };
    let Some(cloud) = Cloud::start(&job) else {
        return;
    };
    let refuses = Arc::new(AtomicBool::new(true));
    let is_expired = Arc::clone(&refuses);
    let proxy = Proxy::start(&cloud.moto.address, move |_, request| {
        match is_expired.load(SeqCst) && request.what.contains("document") {
            true => Fate::Answer(
                403,
                String::from("<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),
            ),
            false => Fate::Pass,
        }
    });
    let contract = cloud.contract("trap '' TERM; sleep 1000", b"");
    let start = |contract: &Contract| {
        let metadata = Metadata::start(&job, 0, &cloud.user_data(contract));
        let metadata = metadata.with_store(&job, &proxy.address);
        boot(&job, image, &metadata)
    };
    let mut machine = start(&contract);
    machine.ends();
    let Outcome::Failed { step, reason } = cloud.report().outcome else {
        panic!("{}", machine.says());
    };
    assert_eq!(step, "fetching the contract");
    assert!(reason.contains("the URL has expired"), "{reason}");
    let says = machine.says();
    assert!(
        says.contains("the URL has expired") && !says.contains("Signature"),
        "{says}"
    );
    drop(machine);
    refuses.store(false, SeqCst);
    let contract = Contract {
        deadline: Some(SystemTime::now() + Duration::from_secs(90)),
        grace: Duration::from_secs(1),
        ..contract
    };
    let begun = Instant::now();
    let mut machine = start(&contract);
    machine.ends();
    assert!(begun.elapsed() >= Duration::from_secs(90));
    assert_eq!(
        cloud.report().outcome,
        Outcome::TimedOut,
        "{}",
        machine.says()
    );
}
