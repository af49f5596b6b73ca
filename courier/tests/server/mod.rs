//! A store in this process, by HTTP on loopback, which does to each request what a test says.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apppot_contract::Url;

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    Pass,
    /// As `Pass`, without a look at `Range`.
    Whole,
    /// The answer is this status with this text.
    Answer(u16, &'static str),
    /// The connection ends without an answer.
    Drop,
    /// The connection ends in the middle of the object, or of reading it.
    Cut,
    /// Nothing happens any more.
    Hang,
}

type Decide = dyn Fn(&str, usize) -> Fate + Send + Sync;

#[derive(Default)]
struct State {
    objects: HashMap<String, Vec<u8>>,
    /// `METHOD NAME` of every request.
    requests: Vec<String>,
    /// Objects in the order in which they were written.
    puts: Vec<String>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// `decide` gets `METHOD NAME` and how many such requests came before. It ends with the test process.
    pub(crate) fn start(decide: impl Fn(&str, usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (all, decide): (_, Arc<Decide>) = (Arc::clone(&state), Arc::new(decide));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, decide) = (Arc::clone(&all), Arc::clone(&decide));
                std::thread::spawn(move || while serve(&stream, &state, &*decide).is_some() {});
            }
        });
        Server { address, state }
    }

    pub(crate) fn url(&self, name: &str) -> Url {
        let text = format!("http://{}/{name}?Signature=secret0123456789", self.address);
        Url::new(&text).unwrap()
    }

    pub(crate) fn urls(&self, name: &str, count: usize) -> Vec<Url> {
        (0..count)
            .map(|index| self.url(&format!("{name}.{index}")))
            .collect()
    }

    pub(crate) fn set(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.objects.insert(name.to_owned(), bytes.to_vec());
    }

    pub(crate) fn object(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().objects.get(name).cloned()
    }

    pub(crate) fn puts(&self) -> Vec<String> {
        self.state.lock().unwrap().puts.clone()
    }

    pub(crate) fn count(&self, request: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|&one| one == request).count()
    }
}

struct Request {
    method: String,
    name: String,
    headers: HashMap<String, String>,
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&len| len > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let name = target.split('?').next()?.trim_start_matches('/').to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    Some(Request {
        method,
        name,
        headers,
    })
}

/// One request; `None` when the connection has ended.
fn serve(mut stream: &TcpStream, state: &Mutex<State>, decide: &Decide) -> Option<()> {
    // A byte at a time: nothing of the next request may be lost.
    let mut reader = BufReader::with_capacity(1, stream);
    let request = read(&mut reader)?;
    let what = format!("{} {}", request.method, request.name);
    let fate = {
        let mut state = state.lock().unwrap();
        let before = state.requests.iter().filter(|&one| *one == what).count();
        state.requests.push(what.clone());
        decide(&what, before)
    };
    let length = request.headers.get("content-length");
    let length: usize = length.map_or(0, |text| text.parse().unwrap());
    match fate {
        Fate::Answer(status, text) => {
            answer(stream, status, text.as_bytes())?;
            // What is unread when a connection ends takes the answer along: the peer gets a reset instead.
            // A body that waits for consent does not come.
            let read = std::io::copy(&mut reader.take(length as u64), &mut std::io::sink());
            return read.is_ok_and(|read| read == length as u64).then_some(());
        }
        Fate::Drop => return None,
        Fate::Hang => {
            std::thread::sleep(Duration::from_secs(600));
            return None;
        }
        Fate::Pass | Fate::Whole | Fate::Cut => {}
    }
    if request.headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let is_cut = matches!(fate, Fate::Cut);
    let mut body = vec![0; if is_cut { length / 2 } else { length }];
    reader.read_exact(&mut body).ok()?;
    // Tokens of a metadata service are there already.
    if request.method == "PUT" && request.name != "latest/api/token" {
        if is_cut {
            return None;
        }
        let mut state = state.lock().unwrap();
        state.puts.push(request.name.clone());
        state.objects.insert(request.name, body);
        return answer(stream, 200, b"");
    }
    let object = state.lock().unwrap().objects.get(&request.name).cloned();
    let Some(object) = object else {
        return answer(stream, 404, b"<Error><Code>NoSuchKey</Code></Error>");
    };
    let range = request
        .headers
        .get("range")
        .filter(|_| !matches!(fate, Fate::Whole));
    let from = range.map_or(0, |text| {
        let text = text.strip_prefix("bytes=").unwrap();
        text.strip_suffix('-').unwrap().parse::<usize>().unwrap()
    });
    let (status, rest) = (if range.is_some() { 206 } else { 200 }, &object[from..]);
    if is_cut {
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
            rest.len()
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&rest[..rest.len() / 2]);
        return None;
    }
    answer(stream, status, rest)
}

fn answer(mut stream: &TcpStream, status: u16, body: &[u8]) -> Option<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}
