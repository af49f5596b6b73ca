//! Maps of sparse files: GNU's old format, and the pax formats 0.0, 0.1 and 1.0.

use super::header::number;
use super::pax::decimal;
use super::BLOCK;
use crate::{Error, Result};

/// Most stretches of data of one file.
const MOST_RUNS: usize = 1 << 20;

/// What pax records say about a sparse file.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) runs: Vec<(u64, u64)>,
    offset: Option<u64>,
    major: u32,
    is_sparse: bool,
}

/// Where the map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// In the records (0.0, 0.1).
    Records,
    /// Before the content (1.0).
    Stored,
}

impl Sparse {
    /// Takes a record; `None` when its value is wrong.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        self.is_sparse = true;
        match name {
            b"major" => self.major = decimal(value)?,
            b"name" => self.name = Some(value.to_owned()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => self.runs.push((self.offset.take()?, decimal(value)?)),
            b"map" => {
                let numbers: Option<Vec<u64>> =
                    value.split(|byte| *byte == b',').map(decimal).collect();
                let numbers = numbers?;
                self.runs = numbers
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect();
                (numbers.len() % 2 == 0).then_some(())?;
            }
            _ => {}
        }
        (self.runs.len() <= MOST_RUNS).then_some(())
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.is_sparse.then_some(match self.major {
            1 => Version::Stored,
            _ => Version::Records,
        })
    }
}

fn bad() -> Error {
    Error::Malformed(String::from("the map of a sparse file"))
}

/// Entries of GNU's old format: offset, length; the first that is empty ends them.
pub(super) fn entries(bytes: &[u8], runs: &mut Vec<(u64, u64)>) -> Result<()> {
    for entry in bytes.chunks_exact(24).take_while(|entry| entry[12] != 0) {
        let read = |field: &[u8]| number(field).and_then(|number| u64::try_from(number).ok());
        let (Some(offset), Some(len)) = (read(&entry[..12]), read(&entry[12..])) else {
            return Err(bad());
        };
        runs.push((offset, len));
    }
    match runs.len() <= MOST_RUNS {
        true => Ok(()),
        false => Err(bad()),
    }
}

/// A block that goes on with the map, and whether another one does.
pub(super) fn extension(block: &[u8; BLOCK], runs: &mut Vec<(u64, u64)>) -> Result<bool> {
    let before = runs.len();
    entries(&block[..504], runs)?;
    match (runs.len() > before, block[504] != 0) {
        // Blocks without an entry would have no end.
        (false, true) => Err(bad()),
        (_, more) => Ok(more),
    }
}

/// The map of version 1.0: decimal numbers, each on a line, that fill whole blocks.
pub(super) fn stored(block: &mut dyn FnMut() -> Result<[u8; BLOCK]>) -> Result<Vec<(u64, u64)>> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut at = 0;
    let mut number = || -> Result<u64> {
        loop {
            let rest = &bytes[at..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                at += end + 1;
                return decimal(&rest[..end]).ok_or_else(bad);
            }
            if rest.len() > 20 {
                return Err(bad());
            }
            bytes.drain(..at);
            at = 0;
            bytes.extend_from_slice(&block()?);
        }
    };
    let count = number()?;
    if count > MOST_RUNS as u64 {
        return Err(bad());
    }
    let mut runs = Vec::new();
    for _ in 0..count {
        runs.push((number()?, number()?));
    }
    Ok(runs)
}

/// The stretches are in order, within the file, and as long in all as what is stored.
pub(super) fn check(size: u64, runs: &[(u64, u64)], stored: u64) -> Result<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, len) in runs {
        if *offset < end {
            return Err(bad());
        }
        end = offset.checked_add(*len).ok_or_else(bad)?;
        sum += len;
    }
    match end <= size && sum == stored {
        true => Ok(()),
        false => Err(bad()),
    }
}
