//! A cloud on this machine: moto, which answers as EC2 and EBS do, and a proxy before it that makes trouble.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::{eventually, processes, Run};

/// Programs of the virtual environment that `setup/moto.sh` makes.
fn programs() -> Option<PathBuf> {
    let programs = std::env::var_os("APPPOT_TEST_MOTO").map(PathBuf::from);
    if programs.is_none() {
        super::site::refuse_to_skip("APPPOT_TEST_MOTO is not set (setup/moto.sh prints it)");
    }
    programs
}

/// A region of a cloud of one test's own, ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Moto {
    child: Child,
    programs: PathBuf,
    pub(crate) address: String,
}

impl Moto {
    /// `None` when there is no moto.
    pub(crate) fn start() -> Option<Self> {
        Self::with(&[])
    }

    /// With variables of its environment.
    pub(crate) fn with(variables: &[(&str, &str)]) -> Option<Self> {
        let programs = programs()?;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut command = Command::new(programs.join("moto_server"));
        command
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        processes::end_with_thread(&mut command);
        let child = processes::spawn(&mut command).unwrap();
        let address = format!("127.0.0.1:{port}");
        eventually("moto answers", || TcpStream::connect(&address).is_ok());
        Some(Moto {
            child,
            programs,
            address,
        })
    }

    /// Forgets everything, as if it had been started anew.
    pub(crate) fn forget(&self) {
        self.request("POST /moto-api/reset", "ec2", "");
    }

    pub(crate) fn make_bucket(&self, name: &str) {
        let make = "import boto3, sys; boto3.client('s3').create_bucket(Bucket=sys.argv[1], \
                    CreateBucketConfiguration={'LocationConstraint': 'eu-north-1'}); print('{}')";
        self.ask(make, &[name]);
    }

    /// Has EC2 do this, and returns its answer.
    pub(crate) fn ec2(&self, parameters: &str) -> String {
        let body = format!("{parameters}&Version=2016-11-15");
        self.request("POST /", "ec2", &body)
    }

    /// Asks S3 for this, and returns its answer.
    pub(crate) fn s3(&self, path: &str) -> String {
        self.request(&format!("GET {path}"), "s3", "")
    }

    /// Makes a request that is as good as signed: moto looks for the service's name there, and no further.
    fn request(&self, what: &str, service: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = [
            format!("{what} HTTP/1.1"),
            format!("host: {}", self.address),
            format!("authorization: AWS4-HMAC-SHA256 Credential={}/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0", KEY[0].1),
            String::from("content-type: application/x-www-form-urlencoded"),
            format!("content-length: {}", body.len()),
            String::from("connection: close"),
        ];
        let request = format!("{}\r\n\r\n{body}", head.join("\r\n"));
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{what}: {answer}");
        answer
    }

    /// What a Python program that uses boto3, the cloud's own client, prints as JSON.
    pub(crate) fn ask(&self, program: &str, arguments: &[&str]) -> serde_json::Value {
        let mut command = Command::new(self.programs.join("python3"));
        command
            .arg("-c")
            .arg(program)
            .args(arguments)
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .envs(KEY)
            .env("AWS_REGION", REGION)
            .env("AWS_DEFAULT_REGION", REGION);
        let output = processes::output(&mut command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const REGION: &str = "eu-north-1";
pub(crate) const KEY: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
    ("AWS_SECRET_ACCESS_KEY", "never/to+be=seen"),
];

impl Run<'_> {
    /// In the cloud at this address.
    pub(crate) fn cloud(self, address: &str) -> Self {
        let [id, secret] = KEY;
        self.env("AWS_ENDPOINT_URL", format!("http://{address}"))
            .env("AWS_REGION", REGION)
            .env(id.0, id.1)
            .env(secret.0, secret.1)
    }
}

/// A request as it went through the proxy.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// `EC2 ACTION`, or method and path.
    pub(crate) what: String,
    /// With names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// As the cloud gets it.
    pub(crate) head: String,
}

/// What becomes of a request.
pub(crate) enum Fate {
    Pass,
    /// It is passed on, and the answer is shown to this before the client gets it.
    Show(Box<dyn FnOnce(&str)>),
    /// It is answered with this status and body, and not passed on.
    Answer(u16, String),
    /// It is passed on, and the answer is lost.
    Lose,
    /// Neither answered nor passed on, as long as the client lives.
    Stall,
}

impl Request {
    /// The value of a parameter of EC2's, as it is written in a request.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        let mut pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == name)?;
        Some(value.to_owned())
    }

    /// Whether a machine of the cloud makes it.
    pub(crate) fn is_of_machine(&self) -> bool {
        self.headers.get("host").is_some_and(|host| host == STORE)
    }

    pub(crate) fn is_block(&self) -> bool {
        self.what.starts_with("PUT /snapshots/")
    }
}

/// A proxy's address as a machine sees it, whose loopback is another: of the same length, so that it can take the
/// other's place in anything.
pub(crate) const STORE: &str = "169.254.169.253";

/// Puts one text into another's place.
fn replace(bytes: &[u8], old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = bytes.to_owned();
    for at in 0..(bytes.len() + 1).saturating_sub(old.len()) {
        if bytes[at..].starts_with(old.as_bytes()) {
            bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
        }
    }
    bytes
}

/// What `%XX` stands for.
pub(crate) fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}

type Decide = dyn Fn(usize, &Request) -> Fate + Send + Sync;

/// Stands before a cloud.
pub(crate) struct Proxy {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Proxy {
    /// `decide` gets the number of the request, from 0, and the request.
    pub(crate) fn start(
        upstream: &str,
        decide: impl Fn(usize, &Request) -> Fate + Send + Sync + 'static,
    ) -> Self {
        Self::listen(upstream, true, decide)
    }

    /// As [`Proxy::start`], for more than memory holds: no request is kept, and none has a number.
    pub(crate) fn forgetful(
        upstream: &str,
        decide: impl Fn(&Request) -> Fate + Send + Sync + 'static,
    ) -> Self {
        Self::listen(upstream, false, move |_, request| decide(request))
    }

    fn listen(
        upstream: &str,
        keeps: bool,
        decide: impl Fn(usize, &Request) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, upstream) = (keeps.then(|| Arc::clone(&seen)), upstream.to_owned());
        let decide: Arc<Decide> = Arc::new(decide);
        // It ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, upstream) = (all.clone(), upstream.clone());
                let decide = Arc::clone(&decide);
                std::thread::spawn(move || serve(stream, &upstream, all.as_deref(), &*decide));
            }
        });
        Proxy { address, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests have `word` in what they are.
    pub(crate) fn count(&self, word: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|one| one.what.contains(word)).count()
    }
}

/// One request, one answer, and the connection's end.
fn serve(
    mut stream: TcpStream,
    upstream: &str,
    all: Option<&Mutex<Vec<Request>>>,
    decide: &Decide,
) {
    let own = stream.local_addr().unwrap().to_string();
    let Some(mut request) = read(&mut stream) else {
        return;
    };
    if request.is_of_machine() {
        request.head = request.head.replace(STORE, &own);
    }
    let number = all.map_or(0, |all| {
        let mut all = all.lock().unwrap();
        all.push(request.clone());
        all.len() - 1
    });
    match decide(number, &request) {
        Fate::Pass => {
            let mut answer = pass(&request, upstream);
            if request.is_of_machine() {
                answer = replace(&answer, &own, STORE);
            }
            let _ = stream.write_all(&answer);
        }
        Fate::Show(show) => {
            let answer = pass(&request, upstream);
            show(&String::from_utf8_lossy(&answer));
            let _ = stream.write_all(&answer);
        }
        Fate::Lose => drop(pass(&request, upstream)),
        Fate::Answer(status, body) => {
            let len = body.len();
            let head = format!(
                "HTTP/1.1 {status} Trouble\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n"
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
        Fate::Stall => {
            let _ = stream.read(&mut [0]);
        }
    }
}

fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let end = loop {
        let found = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = found {
            break end;
        }
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            len => bytes.extend_from_slice(&buffer[..len]),
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut body = bytes.split_off(end + 4);
    let pairs = head.lines().filter_map(|line| line.split_once(": "));
    let headers: HashMap<_, _> = pairs
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let len = headers
        .get("content-length")
        .map_or(0, |len| len.parse().unwrap());
    if headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    while body.len() < len {
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            len => body.extend_from_slice(&buffer[..len]),
        }
    }
    let text = String::from_utf8_lossy(&body);
    let action = text
        .strip_prefix("Action=")
        .and_then(|rest| rest.split('&').next());
    let line = head.lines().next()?;
    let what = match action {
        Some(action) => format!("EC2 {action}"),
        None => line.trim_end_matches(" HTTP/1.1").to_owned(),
    };
    Some(Request {
        what,
        headers,
        body,
        head,
    })
}

fn pass(request: &Request, upstream: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(upstream) {
        let head = format!("{}\r\nconnection: close\r\n\r\n", request.head);
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&request.body);
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}
