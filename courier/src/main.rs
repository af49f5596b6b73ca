//! The courier: the other end of the agent's link in a machine that only an object store reaches.
//!
//! The agent starts it with the contract's document on standard input and the link, a socket, as standard
//! output. It speaks the launcher's half of the link's protocol: what a launcher would send it reads from
//! objects, and what comes from the agent it writes to objects, the report last (`docs/contract.md`, "The
//! object store"). [`session`] is the story.
//!
//! Arguments: `--metadata ADDRESS` (repeated), where EC2's metadata service is asked whether the machine is
//! to be taken back; `--report-only`, when the job does not run: nothing but the report is stored. URLs are
//! secrets: they are in no argument, environment or message.

mod control;
mod download;
mod feed;
mod http;
mod link;
mod retry;
mod session;
mod shared;
mod spool;
mod spot;
mod store;
mod times;
mod upload;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use apppot_contract::document::{self, Document};

fn main() -> ExitCode {
    http::resolve_names_alone();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            shared::say(&reason);
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), String> {
    let arguments = Arguments::read(std::env::args().skip(1))?;
    let document = read_document().map_err(|error| format!("the contract: {error}"))?;
    let socket = io::stdout().as_fd().try_clone_to_owned();
    let socket = socket.map_err(|error| format!("the link: {error}"))?;
    let socket = UnixStream::from(socket);
    match arguments.report_only {
        true => session::report_only(document, socket),
        false => session::run(document, socket, &arguments.metadata),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    /// Where the metadata service is.
    metadata: Vec<SocketAddr>,
    report_only: bool,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut read = Arguments::default();
        while let Some(word) = words.next() {
            let address = match word.as_str() {
                "--report-only" => {
                    read.report_only = true;
                    continue;
                }
                "--metadata" => words.next().and_then(|text| text.parse().ok()),
                _ => None,
            };
            let usage =
                "usage: courier [--report-only] [--metadata ADDRESS:PORT]... <CONTRACT >LINK";
            read.metadata.push(address.ok_or(usage)?);
        }
        Ok(read)
    }
}

fn read_document() -> Result<Document, String> {
    let mut text = Vec::new();
    // One byte more, which tells too long a document from the longest one.
    let most = document::MAX_LEN as u64 + 1;
    let read = io::stdin().lock().take(most).read_to_end(&mut text);
    read.map_err(|error| error.to_string())?;
    document::decode_user_data(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_addresses() {
        let parse = |words: &[&str]| Arguments::read(words.iter().map(|&word| word.to_owned()));
        assert_eq!(parse(&[]), Ok(Arguments::default()));
        assert!(parse(&["--report-only"]).unwrap().report_only);
        let found = parse(&[
            "--metadata",
            "169.254.169.254:80",
            "--metadata",
            "[fd00:ec2::254]:80",
        ]);
        assert_eq!(found.unwrap().metadata.len(), 2);
        for wrong in [&["x"][..], &["--metadata"], &["--metadata", "host"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
