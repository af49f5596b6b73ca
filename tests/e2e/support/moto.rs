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
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("POST /moto-api/reset HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
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
const KEY: [(&str, &str); 2] = [
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
    body: Vec<u8>,
    head: String,
}

/// What becomes of a request.
pub(crate) enum Fate {
    Pass,
    /// It is answered with this status and body, and not passed on.
    Answer(u16, String),
    /// It is passed on, and the answer is lost.
    Lose,
    /// Neither answered nor passed on, as long as the client lives.
    Stall,
}

impl Request {
    /// The value of a parameter of EC2's.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        let mut pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == name)?;
        Some(value.to_owned())
    }

    pub(crate) fn is_block(&self) -> bool {
        self.what.starts_with("PUT /snapshots/")
    }
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, upstream) = (Arc::clone(&seen), upstream.to_owned());
        let decide: Arc<Decide> = Arc::new(decide);
        // It ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, upstream) = (Arc::clone(&all), upstream.clone());
                let decide = Arc::clone(&decide);
                std::thread::spawn(move || serve(stream, &upstream, &all, &*decide));
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
fn serve(mut stream: TcpStream, upstream: &str, all: &Mutex<Vec<Request>>, decide: &Decide) {
    let Some(request) = read(&mut stream) else {
        return;
    };
    let number = {
        let mut all = all.lock().unwrap();
        all.push(request.clone());
        all.len() - 1
    };
    match decide(number, &request) {
        Fate::Pass => {
            let answer = pass(&request, upstream);
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
