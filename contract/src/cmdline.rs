//! The contract as words of the kernel command line.
//!
//! `apppot.version=1` and the other tokens stand between spaces, among words that are not ours. A
//! contract that does not fit, or that holds secrets, goes by another carrier and the command line
//! says by which: `apppot.version=1 apppot.link=/dev/ttyS0 apppot.contract=link`.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use crate::contract::{Contract, Reader, VERSION};
use crate::document;
use crate::token::{Error, Token, Writer, PREFIX, TERM};

/// Another carrier than the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// `Contract` frames on the link, sent when the agent has said hello.
    Link,
}

/// A contract divided between the command line and another carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Words for the kernel command line; none holds a space.
    pub words: Vec<String>,
    /// The document for the other carrier, when there is one.
    pub document: Option<String>,
}

/// What a kernel command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No contract: an ordinary boot.
    Absent,
    /// The whole contract.
    Here(Box<Contract>),
    /// The contract is elsewhere; `link` is the link's device file.
    Elsewhere {
        /// Where to look.
        carrier: Carrier,
        /// `apppot.link`, which is needed to look there.
        link: std::path::PathBuf,
    },
}

/// Writes `contract` as words, in at most `limit` bytes with the spaces between them, or else as a
/// document for `other`. A contract with an environment or an object store always goes by `other`: a guest's command
/// line is readable to every process in it.
///
/// # Errors
/// The contract does not stand [`Contract::check`], or does not fit and there is no other carrier,
/// or it has no link to go by, or it is longer than a document may be.
pub fn encode(contract: &Contract, limit: usize, other: Option<Carrier>) -> Result<Encoded, Error> {
    contract.check()?;
    let mut out = start();
    contract.write(&mut out);
    let words = out.finish();
    let len = length(&words);
    let has_secrets = !contract.env.is_empty() || !contract.store.is_empty();
    if len <= limit && (!has_secrets || other.is_none()) {
        return Ok(Encoded {
            words,
            document: None,
        });
    }
    let Some(Carrier::Link) = other else {
        return Err(too_long(&words, len, limit));
    };
    let link = contract
        .link
        .as_ref()
        .ok_or_else(|| Error::new(b"apppot.contract=link", "needs apppot.link"))?;
    let document = document::encode(contract);
    if document.len() > document::MAX_LEN {
        return Err(too_long(&words, document.len(), document::MAX_LEN));
    }
    let mut out = start();
    out.add("link", link.as_os_str().as_bytes());
    out.add("contract", "link");
    let words = out.finish();
    let len = length(&words);
    if len > limit {
        return Err(too_long(&words, len, limit));
    }
    Ok(Encoded {
        words,
        document: Some(document),
    })
}

fn start() -> Writer {
    let mut out = Writer::default();
    out.add("version", VERSION.to_string());
    out
}

/// What the words take on a command line, each with the space that parts it from its neighbour.
fn length(words: &[String]) -> usize {
    words.iter().map(|word| word.len() + 1).sum()
}

/// Names what to make shorter: the longest word of the key whose words are the longest together.
fn too_long(words: &[String], len: usize, limit: usize) -> Error {
    let mut keys: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for word in words {
        let key = word.split('=').next().unwrap_or_default();
        let (total, longest) = keys.entry(key).or_default();
        *total += word.len();
        if word.len() > longest.len() {
            *longest = word;
        }
    }
    let largest = keys.into_values().max_by_key(|(total, _)| *total);
    Error::new(
        largest.map(|(_, word)| word.as_bytes()).unwrap_or_default(),
        &format!("makes the contract too long: {len} bytes, {limit} is the most"),
    )
}

/// Reads a kernel command line, as `/proc/cmdline` has it.
///
/// # Errors
/// A word with our prefix that cannot be understood; the error names it.
pub fn decode(line: &[u8]) -> Result<Found, Error> {
    let words = || line.split(u8::is_ascii_whitespace);
    // TERM= alone is no contract: people hand it to init on ordinary boots.
    if !words().any(|word| word.starts_with(PREFIX.as_bytes())) {
        return Ok(Found::Absent);
    }
    let mut tokens = Vec::new();
    for word in words() {
        tokens.extend(Token::parse(word)?);
    }
    check_version(&tokens)?;
    tokens.retain(|token| token.key != "version");
    if let Some(elsewhere) = elsewhere(&tokens)? {
        return Ok(elsewhere);
    }
    let mut reader = Reader::default();
    for token in &tokens {
        reader.take(token)?;
    }
    Ok(Found::Here(Box::new(reader.finish()?)))
}

/// The token of a key that may come once.
fn only<'a>(tokens: &[Token<'a>], key: &str) -> Result<Option<Token<'a>>, Error> {
    let mut found = tokens.iter().filter(|token| token.key == key);
    let first = found.next().copied();
    match found.next() {
        Some(again) => Err(again.error("repeats a key")),
        None => Ok(first),
    }
}

fn check_version(tokens: &[Token]) -> Result<(), Error> {
    match only(tokens, "version")? {
        Some(token) if token.value == VERSION.to_string() => Ok(()),
        Some(token) => Err(token.error("is another version than 1")),
        None => {
            let key = tokens
                .iter()
                .map(|token| token.key)
                .find(|&key| key != TERM);
            let what = format!("is missing beside apppot.{}", key.unwrap_or_default());
            Err(Error::new(b"apppot.version", &what))
        }
    }
}

fn elsewhere(tokens: &[Token]) -> Result<Option<Found>, Error> {
    let Some(token) = only(tokens, "contract")? else {
        return Ok(None);
    };
    if token.value != "link" {
        return Err(token.error("names an unknown carrier"));
    }
    let mut reader = Reader::default();
    for other in tokens.iter().filter(|other| other.key != "contract") {
        if !matches!(other.key, "link" | TERM) {
            return Err(other.error("stands beside apppot.contract"));
        }
        reader.take(other)?;
    }
    let link = reader
        .finish()?
        .link
        .ok_or_else(|| token.error("needs apppot.link"))?;
    Ok(Some(Found::Elsewhere {
        carrier: Carrier::Link,
        link,
    }))
}

#[cfg(test)]
mod tests;
