//! The courier as a process, and the agent that is played.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use apppot_contract::link::{Decoder, Frame, Stream};
use apppot_contract::{Outcome, Report};

/// The courier and the agent's end of its link.
pub(crate) struct Courier {
    pub(crate) process: Child,
    pub(crate) link: UnixStream,
    decoder: Decoder,
    /// What it has said on the console.
    console: tempfile::NamedTempFile,
}

/// A frame, with bytes of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Contract(Vec<u8>),
    Files(Vec<u8>),
    Stdin(Vec<u8>),
    StdinEof,
    Signal(u8),
    Shutdown,
    Credit,
    End,
}

impl Courier {
    pub(crate) fn start(document: &str, arguments: &[&str]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let console = tempfile::NamedTempFile::new().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_apppot-courier"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(theirs))
            .stderr(console.reopen().unwrap())
            .spawn()
            .unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(document.as_bytes()).unwrap();
        drop(stdin);
        ours.set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        let mut courier = Courier {
            process,
            link: ours,
            decoder: Decoder::default(),
            console,
        };
        courier.send(&Frame::Hello {
            protocol: 1,
            agent: b"test",
        });
        courier
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        self.link.write_all(&frame.to_vec()).unwrap();
    }

    /// The next frame. What is consumed is returned at once.
    pub(crate) fn next(&mut self) -> Got {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let frame = self.decoder.next().unwrap().map(|frame| match frame {
                Frame::Contract(bytes) => Got::Contract(bytes.to_vec()),
                Frame::Files(bytes) => Got::Files(bytes.to_vec()),
                Frame::Stdin(bytes) => Got::Stdin(bytes.to_vec()),
                Frame::StdinEof => Got::StdinEof,
                Frame::Signal(number) => Got::Signal(number),
                Frame::Shutdown => Got::Shutdown,
                Frame::Credit(..) => Got::Credit,
                other => panic!("{other:?}"),
            });
            let returned = match &frame {
                Some(Got::Files(bytes)) => Some((Stream::Files, bytes.len())),
                Some(Got::Stdin(bytes)) => Some((Stream::Stdin, bytes.len())),
                _ => None,
            };
            if let Some((stream, len)) = returned {
                // It may have gone since.
                let credit = Frame::Credit(stream, len as u32).to_vec();
                let _ = self.link.write_all(&credit);
            }
            match frame {
                Some(Got::Credit) => {}
                Some(frame) => return frame,
                None => match self.link.read(&mut buffer).unwrap() {
                    0 => return Got::End,
                    len => self.decoder.feed(&buffer[..len]),
                },
            }
        }
    }

    /// The files up to `length` bytes.
    pub(crate) fn files(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            match self.next() {
                Got::Files(bytes) => all.extend(bytes),
                other => panic!("{other:?}: {}", self.says()),
            }
        }
        all
    }

    pub(crate) fn input(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.next() {
                Got::Stdin(bytes) => all.extend(bytes),
                Got::StdinEof => return all,
                other => panic!("{other:?}: {}", self.says()),
            }
        }
    }

    /// Sends bytes as a stream's, and waits for the room.
    pub(crate) fn stream(&mut self, bytes: &[u8], frame: fn(&[u8]) -> Frame) {
        let mut window = self.link.try_clone().unwrap();
        let reader = std::thread::spawn({
            let mut link = self.link.try_clone().unwrap();
            let total = bytes.len();
            move || {
                let (mut decoder, mut buffer, mut returned) = (Decoder::default(), [0; 4096], 0);
                while returned < total {
                    let len = link.read(&mut buffer).unwrap();
                    assert!(len > 0, "the link ended");
                    decoder.feed(&buffer[..len]);
                    while let Some(frame) = decoder.next().unwrap() {
                        if let Frame::Credit(_, bytes) = frame {
                            returned += bytes as usize;
                        }
                    }
                }
            }
        });
        for piece in bytes.chunks(60_000) {
            window.write_all(&frame(piece).to_vec()).unwrap();
        }
        reader.join().unwrap();
    }

    pub(crate) fn reports(&mut self, outcome: Outcome) {
        self.send(&Frame::Report(&Report::of(outcome).encode()));
        self.ends();
    }

    /// Waits for the end of the link, and of the process: whether it was content.
    pub(crate) fn ends(&mut self) -> bool {
        while self.next() != Got::End {}
        self.process.wait().unwrap().success()
    }

    pub(crate) fn says(&self) -> String {
        std::fs::read_to_string(self.console.path()).unwrap()
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        assert!(!self.says().contains("secret"), "{}", self.says());
    }
}
