//! A machine of a cloud that does not boot any: the test does there what the courier of an image does, with
//! the user-data that the machine got and nothing else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use apppot_contract::document::{decode, decode_user_data, Document};
use apppot_contract::store::{segment_size, Url};
use apppot_contract::{Contract, Outcome, Report, Workload};
use apppot_snapshot::transfer::{
    list, pack, unpack, Cargo, Limits, Listing, Options, Patterns, Reader,
};
use serde_json::Value;

use super::moto::Moto;
use super::{eventually, processes, Job};

/// A machine that has read its contract.
pub(crate) struct Machine {
    pub(crate) id: String,
    /// What the cloud knows of it.
    pub(crate) facts: Value,
    pub(crate) contract: Contract,
    directory: PathBuf,
    before: Listing,
}

/// Makes a request; status and body.
fn http(method: &str, url: &Url, body: &[u8]) -> (u16, Vec<u8>) {
    let rest = url.secret().strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let len = body.len();
    let head = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.split_off(end.unwrap() + 4);
    let status = String::from_utf8_lossy(&answer);
    let status = status.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body)
}

fn get(url: &Url) -> Vec<u8> {
    let (status, body) = http("GET", url, b"");
    assert_eq!(status, 200, "{url}");
    body
}

pub(crate) fn put(url: &Url, body: &[u8]) {
    let (status, answer) = http("PUT", url, body);
    assert_eq!(status, 200, "{url}: {}", String::from_utf8_lossy(&answer));
}

/// Writes a stream into its segments.
pub(crate) fn store(urls: &[Url], bytes: &[u8]) {
    let mut rest = bytes;
    for (index, url) in urls.iter().enumerate() {
        let len = rest.len().min(segment_size(index) as usize);
        put(url, &rest[..len]);
        rest = &rest[len..];
        if rest.is_empty() {
            return;
        }
    }
    panic!("too much");
}

fn fetch(urls: &[Url]) -> Vec<u8> {
    urls.iter().flat_map(get).collect()
}

impl Machine {
    /// Waits until somebody starts one.
    pub(crate) fn boot(job: &Job, moto: &Moto) -> Self {
        let facts = moto.ask(include_str!("../machine.py"), &[]);
        let user_data = facts["user-data"].as_str().unwrap();
        let Document::Elsewhere(pointer) = decode_user_data(user_data.as_bytes()).unwrap() else {
            panic!("{user_data}");
        };
        let contract = decode(&get(&pointer.url)).unwrap();
        assert_eq!(contract.deadline, Some(pointer.deadline));
        assert_eq!(contract.store.report, pointer.report);
        let directory = job.beside(&format!("machine-{}", contract.id));
        std::fs::create_dir(&directory).unwrap();
        Machine {
            id: facts["id"].as_str().unwrap().to_owned(),
            facts,
            contract,
            directory,
            before: Listing::default(),
        }
    }

    /// Stores something without bytes, as the courier does first.
    pub(crate) fn announce(&self) {
        put(&self.contract.store.stdout[0], b"");
    }

    /// The job's files, as they come.
    pub(crate) fn take_files(&mut self) -> &Path {
        let packed = fetch(&self.contract.store.files);
        let stream = zstd::stream::decode_all(&packed[..]).unwrap();
        let mut reader = Reader::new(&stream[..]);
        let all = Patterns::new::<&str>(&[]).unwrap();
        let options = Options {
            limits: Limits {
                bytes: u64::MAX,
                entries: u64::MAX,
            },
            owner: None,
            sent: None,
            patterns: &all,
            delete: false,
            rest: None,
            told: &mut |_| (),
        };
        unpack(
            &self.directory,
            &mut reader,
            options,
            &mut Default::default(),
        )
        .unwrap();
        self.before = list(&self.directory, true).unwrap();
        &self.directory
    }

    /// The stream of what has changed, compressed.
    pub(crate) fn results(&self) -> Vec<u8> {
        let now = list(&self.directory, true).unwrap();
        let all = Patterns::new::<&str>(&[]).unwrap();
        let changes = now.changes(&self.before, &all);
        let mut stream = Vec::new();
        let cargo = Cargo::Results(&changes.deleted);
        pack(
            &self.directory,
            cargo,
            &changes.items,
            &mut stream,
            &mut |_| (),
        )
        .unwrap();
        zstd::stream::encode_all(&stream[..], 0).unwrap()
    }

    /// What the launcher wants the job to get.
    pub(crate) fn signals(&self) -> String {
        let url = self.contract.store.control.as_ref().unwrap();
        match http("GET", url, b"") {
            (200, lines) => String::from_utf8(lines).unwrap(),
            _ => String::new(),
        }
    }

    /// Waits for a signal for the job.
    pub(crate) fn until_signals(&self, lines: &str) {
        eventually("the signals are there", || self.signals() == lines);
    }

    pub(crate) fn report(&self, outcome: Outcome, notes: &[&str]) {
        let report = Report {
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
            ..Report::of(outcome)
        };
        put(
            self.contract.store.report.as_ref().unwrap(),
            &report.encode(),
        );
    }

    /// Runs the command as the user of the test, and stores everything.
    pub(crate) fn work(&mut self) {
        self.announce();
        self.take_files();
        let Workload::Command(argv) = &self.contract.workload else {
            panic!("no command");
        };
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).current_dir(&self.directory);
        command.envs(self.contract.env.iter().map(|(name, value)| (name, value)));
        let input = self.directory.with_extension("stdin");
        std::fs::write(&input, fetch(&self.contract.store.stdin)).unwrap();
        command.stdin(std::fs::File::open(&input).unwrap());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = processes::spawn(&mut command).unwrap();
        let done = child.wait_with_output().unwrap();
        store(&self.contract.store.stdout, &done.stdout);
        store(&self.contract.store.stderr, &done.stderr);
        store(&self.contract.store.results, &self.results());
        let outcome = match done.status.signal() {
            Some(signal) => Outcome::Signalled {
                signal: signal as u8,
            },
            None => Outcome::Exited {
                status: done.status.code().unwrap() as u8,
            },
        };
        self.report(outcome, &[]);
    }
}
