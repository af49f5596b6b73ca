//! The story: the contract, the job's files, its streams, its results, the report.

use std::io::{self, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use apppot_contract::document::{self, Document};
use apppot_contract::link::{Frame, Stream, MAX_PAYLOAD};
use apppot_contract::{Contract, Outcome, Pointer, Report, Stdin, Url};
use zstd::stream::{read, write};

use crate::download::Download;
use crate::feed::{feed, Returns};
use crate::http::Http;
use crate::link::{Receiver, Sender};
use crate::retry::{persist, Patience};
use crate::shared::Shared;
use crate::store::{Store, Trouble};
use crate::times::Times;
use crate::upload::{Plan, Upload};
use crate::{control, spot};

/// How fast and small results become: zstd's default.
const LEVEL: i32 = 3;

const FETCHING_CONTRACT: &str = "fetching the contract";
const FETCHING_FILES: &str = "fetching the job's files";
const FETCHING_INPUT: &str = "fetching standard input";
const STORING_RESULTS: &str = "storing the job's results";
const STORING_REPORT: &str = "storing the report";

const NEEDED: &str = "the contract names no object for the report, or no deadline";

/// Serves the agent at the other end of `socket` to its end.
///
/// # Errors
/// The report could not be stored, or there is nowhere to store it.
pub(crate) fn run(
    document: Document,
    socket: UnixStream,
    metadata: &[SocketAddr],
) -> Result<(), String> {
    let http = Arc::new(Http::new());
    let ours = socket.try_clone().map_err(|error| error.to_string())?;
    let sender = Sender::new(ours).map_err(|error| error.to_string())?;
    let mut receiver = Receiver::new(socket);
    receiver.greet()?;
    let contract = match document {
        Document::Contract(contract) => *contract,
        Document::Elsewhere(pointer) => fetch(&*http, &pointer, &sender)?,
    };
    let store: Arc<dyn Store> = Arc::<Http>::clone(&http);
    let session = Session::new(&contract, store, sender)?;
    session.watch(metadata, http, contract.store.control.clone())?;
    session.feed(&contract)?;
    session.serve(&mut receiver)
}

/// Stores the agent's report, and touches nothing else that is stored of the job.
///
/// # Errors
/// As [`run`].
pub(crate) fn report_only(document: Document, socket: UnixStream) -> Result<(), String> {
    let mut receiver = Receiver::new(socket);
    receiver.greet()?;
    let (url, deadline, grace) = match document {
        Document::Contract(contract) => (contract.store.report, contract.deadline, contract.grace),
        Document::Elsewhere(pointer) => (pointer.report, Some(pointer.deadline), pointer.grace),
    };
    let times = Times::new(deadline.ok_or(NEEDED)?, grace);
    let report = receiver.each(|frame| match frame {
        Frame::Report(text) => {
            let report = Report::decode(text).map_err(|error| error.to_string())?;
            Ok(Some(report))
        }
        _ => Ok(None),
    })?;
    let report = report.ok_or("the agent has ended without a report")?;
    store_report(&Http::new(), &url.ok_or(NEEDED)?, &report, times.report)
}

/// Fetches the document with the contract and gives it to the agent.
fn fetch(store: &dyn Store, pointer: &Pointer, sender: &Sender) -> Result<Contract, String> {
    let times = Times::new(pointer.deadline, pointer.grace);
    let fetched = persist(FETCHING_CONTRACT, times.deadline, || {
        let object = store.get(&pointer.url, 0, times.deadline)?;
        let mut text = Vec::new();
        let mut body = object.body.take(document::MAX_LEN as u64 + 1);
        let read = body.read_to_end(&mut text);
        let lost =
            |reason: &dyn std::fmt::Display| Trouble::Passing(format!("{}: {reason}", pointer.url));
        read.map_err(|error| lost(&error))?;
        if text.len() <= document::MAX_LEN && (text.len() as u64) < object.length {
            return Err(lost(&"the answer was cut off"));
        }
        Ok(text)
    });
    let understood = fetched.and_then(|text| {
        let contract = document::decode(&text).map_err(|error| error.to_string())?;
        match contract.store.report.is_some() {
            true => Ok((contract, text)),
            false => Err(String::from("the contract at its URL names no objects")),
        }
    });
    match understood {
        Ok((contract, text)) => {
            for piece in text.chunks(MAX_PAYLOAD) {
                sender.send(&Frame::Contract(piece));
            }
            sender.send(&Frame::Contract(b""));
            Ok(contract)
        }
        Err(reason) => {
            let report = Report::of(missed(&times, FETCHING_CONTRACT, &reason));
            if let Some(url) = &pointer.report {
                store_report(store, url, &report, times.report)?;
            }
            Err(format!("{FETCHING_CONTRACT}: {reason}"))
        }
    }
}

/// What it means that something cannot be read.
fn missed(times: &Times, step: &str, reason: &str) -> Outcome {
    match times.is_late() {
        true => Outcome::TimedOut,
        false => Outcome::Failed {
            step: step.to_owned(),
            reason: reason.to_owned(),
        },
    }
}

fn store_report(
    store: &dyn Store,
    url: &Url,
    report: &Report,
    until: Instant,
) -> Result<(), String> {
    let bytes = report.encode();
    let stored = persist(STORING_REPORT, until, || {
        store.put(url, &mut &bytes[..], bytes.len() as u64, until)
    });
    stored.map_err(|reason| format!("{STORING_REPORT}: {reason}"))
}

/// An agent with its job.
struct Session {
    store: Arc<dyn Store>,
    sender: Sender,
    shared: Arc<Shared>,
    times: Times,
    report: Url,
    stdout: Option<Arc<Upload>>,
    stderr: Option<Arc<Upload>>,
    results: Option<Arc<Upload>>,
    files_returned: Returns,
    input_returned: Returns,
}

impl Session {
    fn new(contract: &Contract, store: Arc<dyn Store>, sender: Sender) -> Result<Self, String> {
        let report = contract.store.report.clone().ok_or(NEEDED)?;
        let times = Times::new(contract.deadline.ok_or(NEEDED)?, contract.grace);
        let shared = Arc::new(Shared::new(sender.clone(), times.grace));
        let upload = |what: &'static str, stream: Stream, urls: &[Url]| {
            let (credit, failed) = (sender.clone(), Arc::clone(&shared));
            let plan = Plan {
                what,
                urls: urls.to_vec(),
                is_announced: stream == Stream::Stdout,
                until: times.outputs,
                // Results become smaller on their way here: whoever compresses them waits for room.
                returned: Box::new(move |bytes| match stream {
                    Stream::Files => {}
                    _ => credit.send(&Frame::Credit(stream, bytes)),
                }),
                failed: Box::new(move |reason| {
                    failed.fail(Outcome::Failed {
                        step: what.to_owned(),
                        reason: reason.to_owned(),
                    });
                }),
            };
            let begin = || Upload::start(Arc::clone(&store), plan).map(Some);
            let begun = if urls.is_empty() { Ok(None) } else { begin() };
            begun.map_err(|error| error.to_string())
        };
        let objects = &contract.store;
        let stdout = upload("storing standard output", Stream::Stdout, &objects.stdout)?;
        let stderr = upload("storing standard error", Stream::Stderr, &objects.stderr)?;
        let results = upload(STORING_RESULTS, Stream::Files, &objects.results)?;
        Ok(Session {
            store,
            sender,
            shared,
            times,
            report,
            stdout,
            stderr,
            results,
            files_returned: Returns::default(),
            input_returned: Returns::default(),
        })
    }

    /// Begins to look for signals and for the cloud's notice.
    fn watch(
        &self,
        metadata: &[SocketAddr],
        http: Arc<Http>,
        control: Option<Url>,
    ) -> Result<(), String> {
        if let Some(url) = control {
            let (store, shared) = (Arc::clone(&self.store), Arc::clone(&self.shared));
            begin(move || control::watch(&store, &url, &shared))?;
        }
        if !metadata.is_empty() {
            let (services, shared) = (metadata.to_vec(), Arc::clone(&self.shared));
            begin(move || spot::watch(&http, &services, &shared))?;
        }
        Ok(())
    }

    /// Begins to give the agent the job's files, and then its input.
    fn feed(&self, contract: &Contract) -> Result<(), String> {
        let feeder = Feeder {
            store: Arc::clone(&self.store),
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
            times: self.times,
            files: contract.store.files.clone(),
            input: (contract.stdin == Stdin::Link).then(|| contract.store.stdin.clone()),
            files_returned: self.files_returned.clone(),
            input_returned: self.input_returned.clone(),
        };
        begin(move || feeder.run())
    }

    /// Takes what comes from the agent until the report, and stores it all.
    fn serve(&self, receiver: &mut Receiver) -> Result<(), String> {
        let mut results = None;
        let report = receiver.each(|frame| self.take(frame, &mut results));
        let report = match report {
            Ok(report) => report,
            Err(reason) => {
                self.shared.fail(Outcome::Failed {
                    step: String::from("listening to the agent"),
                    reason,
                });
                None
            }
        };
        if let Some(Err(error)) = results.map(write::Encoder::finish) {
            self.results_lost(&error);
        }
        let uploads = [&self.results, &self.stdout, &self.stderr];
        for upload in uploads.into_iter().flatten() {
            // What is lost has been told.
            let _ = upload.finish();
        }
        let report = self.shared.report(report);
        store_report(&*self.store, &self.report, &report, self.times.report)
    }

    fn take(
        &self,
        frame: Frame,
        results: &mut Option<write::Encoder<'static, Results>>,
    ) -> Result<Option<Report>, String> {
        match frame {
            Frame::Stdout(bytes) => self.output(self.stdout.as_deref(), Stream::Stdout, bytes),
            Frame::Stderr(bytes) => self.output(self.stderr.as_deref(), Stream::Stderr, bytes),
            Frame::Files(bytes) => self.result(bytes, results),
            Frame::Credit(Stream::Files, bytes) => self.files_returned.credit(bytes),
            Frame::Credit(Stream::Stdin, bytes) => self.input_returned.credit(bytes),
            Frame::Log(text) => self.shared.note(&printable(text)),
            Frame::Received(_) => {}
            Frame::Report(text) => {
                let report = Report::decode(text).map_err(|error| error.to_string())?;
                return Ok(Some(report));
            }
            _ => return Err(String::from("a frame that only a launcher sends")),
        }
        Ok(None)
    }

    fn output(&self, upload: Option<&Upload>, stream: Stream, bytes: &[u8]) {
        match upload {
            Some(upload) => upload.push(bytes),
            // Nobody wants it. A frame's length.
            None => self.sender.send(&Frame::Credit(stream, bytes.len() as u32)),
        }
    }

    /// A piece of the results.
    fn result(&self, bytes: &[u8], encoder: &mut Option<write::Encoder<'static, Results>>) {
        let Some(upload) = self.results.as_ref().filter(|_| !bytes.is_empty()) else {
            return;
        };
        if encoder.is_none() {
            match write::Encoder::new(Results(Arc::clone(upload)), LEVEL) {
                Ok(new) => *encoder = Some(new),
                Err(error) => return self.results_lost(&error),
            }
        }
        if let Some(Err(error)) = encoder.as_mut().map(|encoder| encoder.write_all(bytes)) {
            self.results_lost(&error);
        }
        self.sender
            .send(&Frame::Credit(Stream::Files, bytes.len() as u32));
    }

    fn results_lost(&self, error: &io::Error) {
        self.shared.fail(Outcome::Failed {
            step: STORING_RESULTS.to_owned(),
            reason: error.to_string(),
        });
    }
}

/// Where compressed results go.
struct Results(Arc<Upload>);

impl Write for Results {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.wait_for_room();
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text from the agent, as one line without control characters.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Starts a thread, which ends with the process.
fn begin(run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = std::thread::Builder::new().spawn(run);
    started.map(drop).map_err(|error| error.to_string())
}

/// What goes to the agent, in order.
struct Feeder {
    store: Arc<dyn Store>,
    sender: Sender,
    shared: Arc<Shared>,
    times: Times,
    files: Vec<Url>,
    /// `None` when the job has no input.
    input: Option<Vec<Url>>,
    files_returned: Returns,
    input_returned: Returns,
}

impl Feeder {
    fn run(self) {
        if !self.files.is_empty() {
            let compressed = BufReader::new(self.download(FETCHING_FILES, &self.files));
            let fed = read::Decoder::with_buffer(compressed)
                .and_then(|files| feed(files, Stream::Files, &self.sender, &self.files_returned));
            if let Err(error) = fed {
                return self
                    .shared
                    .fail(missed(&self.times, FETCHING_FILES, &error.to_string()));
            }
        }
        self.shared.open();
        let Some(input) = &self.input else {
            return;
        };
        let source = self.download(FETCHING_INPUT, input);
        match feed(source, Stream::Stdin, &self.sender, &self.input_returned) {
            Ok(()) => self.sender.send(&Frame::StdinEof),
            Err(error) => {
                let outcome = missed(&self.times, FETCHING_INPUT, &error.to_string());
                self.shared.fail(outcome);
            }
        }
    }

    fn download(&self, what: &'static str, urls: &[Url]) -> Download {
        let patience = Patience::new(what, self.times.deadline);
        Download::new(Arc::clone(&self.store), urls.to_vec(), patience)
    }
}
