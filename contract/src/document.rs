//! The contract as a document: fw_cfg, disk, user-data, or frames of the link.
//!
//! The first line is `#apppot/1`; each further line is one token, a comment (`#…`) or empty.

use crate::contract::{beside, Contract, Read, Reader, VERSION};
use crate::store::Pointer;
use crate::token::{Error, Token, Writer};

/// What a document starts with, before the version.
pub const MAGIC: &str = "#apppot/";

/// The longest document that is read, in bytes: 1 MiB of arguments, every byte escaped, and the rest.
pub const MAX_LEN: usize = 4 << 20;

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// The contract.
    Contract(Box<Contract>),
    /// Where the document with the contract is.
    Elsewhere(Box<Pointer>),
}

/// Writes `contract` as a document.
#[must_use]
pub fn encode(contract: &Contract) -> String {
    let mut out = Writer::default();
    contract.write(&mut out);
    lines(out)
}

/// Writes the document that stands in the place of one that is too long for its carrier.
#[must_use]
pub fn encode_pointer(pointer: &Pointer) -> String {
    let mut out = Writer::default();
    out.add("document", pointer.url.secret());
    let Contract {
        deadline,
        grace,
        store,
        ..
    } = beside(pointer);
    Contract::write_times(deadline, grace, &mut out);
    store.write(&mut out);
    lines(out)
}

fn lines(out: Writer) -> String {
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
/// No document, a version that is not ours, a document that is too long or cut off, a line that is
/// no token of ours, or a token that the contract does not take; the error names it.
pub fn decode(text: &[u8]) -> Result<Contract, Error> {
    read(text)?.finish()
}

/// Reads user-data, which may say that the document is elsewhere.
///
/// # Errors
/// As [`decode`].
pub fn decode_user_data(text: &[u8]) -> Result<Document, Error> {
    Ok(match read(text)?.finish_any()? {
        Read::Contract(contract) => Document::Contract(contract),
        Read::Pointer(pointer) => Document::Elsewhere(pointer),
    })
}

fn read(text: &[u8]) -> Result<Reader, Error> {
    let mut lines = text.split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default();
    check_version(first)?;
    if text.len() > MAX_LEN {
        let what = format!(
            "is followed by too much: {} bytes, {MAX_LEN} is the most",
            text.len()
        );
        return Err(Error::new(first, &what));
    }
    if !text.ends_with(b"\n") {
        let last = text.rsplit(|&byte| byte == b'\n').next();
        let what = "has no line end after it: the document is cut off";
        return Err(Error::new(last.unwrap_or_default(), what));
    }
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
    Ok(reader)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workload;

    fn error(text: &str) -> String {
        decode(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_shortest_document_is_the_default_contract() {
        assert_eq!(decode(b"#apppot/1\n"), Ok(Contract::default()));
    }

    #[test]
    fn a_document_is_one_token_a_line() {
        let contract = Contract {
            workload: Workload::Command(vec!["a b".into(), "".into(), "\n".into()]),
            ..Contract::default()
        };
        assert_eq!(
            encode(&contract),
            "#apppot/1\napppot.id=apppot\napppot.jobdir=/\napppot.arg=a%20b\napppot.arg=\n\
             apppot.arg=%0A\napppot.stdin=null\napppot.umask=0022\napppot.grace=4000\n\
             apppot.boot=direct\n"
        );
    }

    #[test]
    fn empty_lines_and_comments_are_passed_over() {
        let text = b"#apppot/1\n\n# apppot.arg=no\n#\napppot.arg=x\n\n\n";
        let contract = decode(text).unwrap();
        assert_eq!(contract.workload, Workload::Command(vec!["x".into()]));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, token, what) in [
            ("", "''", "not the first line"),
            ("\n#apppot/1\n", "''", "not the first line"),
            ("apppot.arg=x\n", "'apppot.arg=x'", "not the first line"),
            (" #apppot/1\n", "' #apppot/1'", "not the first line"),
            ("#apppot/2\n", "'#apppot/2'", "another version"),
            ("#apppot/\n", "'#apppot/'", "another version"),
            ("#apppot/01\n", "'#apppot/01'", "another version"),
            ("#apppot/1\r\n", "'#apppot/1\\r'", "another version"),
            ("#apppot/1", "'#apppot/1'", "cut off"),
            ("#apppot/1\napppot.arg=x", "'apppot.arg=x'", "cut off"),
            ("#apppot/1\napppot.ar", "'apppot.ar'", "cut off"),
            ("#apppot/1\nquiet\n", "'quiet'", "no place in a document"),
            ("#apppot/1\n apppot.arg=x\n", "' apppot.arg=x'", "no place"),
            ("#apppot/1\napppot.arg=x\r\n", "'apppot.arg=x\\r'", "%XX"),
            ("#apppot/1\napppot.arg=x y\n", "'apppot.arg=x y'", "%XX"),
            (
                "#apppot/1\napppot.version=1\n",
                "'apppot.version=1'",
                "command line only",
            ),
            (
                "#apppot/1\napppot.contract=link\n",
                "'apppot.contract=link'",
                "command line only",
            ),
            (
                "#apppot/1\napppot.arg=a\0b\n",
                "'apppot.arg=a\\x00b'",
                "%XX",
            ),
            ("#apppot/1\n\0\0\0\n", "'\\x00\\x00\\x00'", "no place"),
        ] {
            let error = error(text);
            assert!(
                error.contains(token) && error.contains(what),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn the_length_is_limited() {
        let mut text = b"#apppot/1\n".to_vec();
        text.resize(MAX_LEN, b'\n');
        assert_eq!(decode(&text), Ok(Contract::default()));
        text.push(b'\n');
        let error = decode(&text).unwrap_err().to_string();
        assert!(
            error.contains("'#apppot/1'") && error.contains("4194305 bytes"),
            "{error}"
        );
    }
}
