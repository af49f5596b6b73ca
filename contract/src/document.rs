//! The contract as a document: fw_cfg, disk, user-data, or frames of the link.
//!
//! The first line is `#apppot/1`; each further line is one token, a comment (`#…`) or empty.

use crate::contract::{Contract, Reader, VERSION};
use crate::token::{Error, Token, Writer};

/// What a document starts with, before the version.
pub const MAGIC: &str = "#apppot/";

/// The longest document that is read, in bytes: 1 MiB of arguments, every byte escaped, and the rest.
pub const MAX_LEN: usize = 4 << 20;

/// Writes `contract` as a document.
#[must_use]
pub fn encode(contract: &Contract) -> String {
    let mut out = Writer::default();
    contract.write(&mut out);
    let mut text = format!("{MAGIC}{VERSION}\n");
    for token in out.finish() {
        text.push_str(&token);
        text.push('\n');
    }
    text
}

/// Reads a document.
///
/// # Errors
/// No document, a version that is not ours, a line that is no token of ours, or a token that the
/// contract does not take; the error names it.
pub fn decode(text: &[u8]) -> Result<Contract, Error> {
    let mut lines = text.split(|&byte| byte == b'\n');
    check_version(lines.next().unwrap_or_default())?;
    let mut reader = Reader::default();
    for line in lines {
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        match Token::parse(line)? {
            Some(token) => reader.take(&token)?,
            None => return Err(Error::new(line, "has no place in a document")),
        }
    }
    reader.finish()
}

fn check_version(line: &[u8]) -> Result<(), Error> {
    let version = line
        .strip_prefix(MAGIC.as_bytes())
        .ok_or_else(|| Error::new(line, "is not the first line of a document (#apppot/1)"))?;
    if version == VERSION.to_string().as_bytes() {
        Ok(())
    } else {
        Err(Error::new(line, "is another version than 1"))
    }
}
