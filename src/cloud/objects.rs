//! The objects of one job, and the streams in them (`docs/contract.md`, "The object store").

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use apppot_cloud::{Config, MOST_READ, S3};
use apppot_contract::link::MAX_PAYLOAD;
use apppot_contract::store::{segment_size, segments_of, Store, Url, SEGMENTS};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};

use crate::staging::Staging;

/// What all names of objects begin with.
pub(super) const ROOT: &str = "apppot/";
/// What is known of a job, for others than its launcher.
pub(super) const RECORD: &str = "job";
pub(super) const REPORT: &str = "report";
pub(super) const DOCUMENT: &str = "document";
const CONTROL: &str = "control";

/// Names below the job's own, and sizes in bytes.
pub(super) type Sizes = BTreeMap<String, u64>;

/// The objects of a job.
#[derive(Debug)]
pub(super) struct Objects {
    s3: S3,
    prefix: String,
}

/// What is known of a job, for others than its launcher.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Record {
    pub(super) job: String,
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) started_by: String,
    pub(super) started: String,
    pub(super) deadline: String,
}

impl Objects {
    pub(super) fn new(config: &Config, bucket: &str, job: &str) -> Result<Self> {
        Ok(Objects {
            s3: S3::new(config, bucket)?,
            prefix: format!("{ROOT}{job}/"),
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn list(&self) -> apppot_cloud::Result<Sizes> {
        let all = self.s3.list(&self.prefix)?.into_iter();
        let named = all.filter_map(|object| {
            let name = object.key.strip_prefix(&self.prefix)?;
            Some((name.to_owned(), object.size))
        });
        Ok(named.collect())
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> apppot_cloud::Result<()> {
        self.s3.put(&self.key(name), bytes)
    }

    pub(super) fn put_control(&self, lines: &str) -> apppot_cloud::Result<()> {
        self.put(CONTROL, lines.as_bytes())
    }

    /// Reads from an object.
    pub(super) fn get(
        &self,
        name: &str,
        start: u64,
        most: u64,
    ) -> apppot_cloud::Result<Option<Vec<u8>>> {
        self.s3.get(&self.key(name), start, most)
    }

    /// The report, once there is one.
    pub(super) fn report(&self) -> apppot_cloud::Result<Option<Vec<u8>>> {
        // One byte more than is good shows that it is too long.
        self.get(REPORT, 0, MAX_PAYLOAD as u64 + 1)
    }

    /// What the launcher has noted of the job.
    pub(super) fn record(&self) -> apppot_cloud::Result<Option<Record>> {
        let text = self.get(RECORD, 0, MOST_READ)?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Deletes everything.
    pub(super) fn delete(&self) -> apppot_cloud::Result<()> {
        for name in self.list()?.keys() {
            self.s3.delete(&self.key(name))?;
        }
        Ok(())
    }

    /// Writes a stream into its segments, and returns how many there are.
    pub(super) fn upload(
        &self,
        stream: &str,
        file: &File,
        goes_on: &dyn Fn(usize) -> bool,
    ) -> Result<usize> {
        let length = file.metadata()?.len();
        let segments = segments_of(length);
        let mut start = 0;
        for index in 0..segments {
            let len = segment_size(index).min(length - start);
            let key = self.key(&segment(stream, index));
            self.s3.put_part(&key, file, start, len, goes_on)?;
            start += len;
        }
        Ok(segments)
    }

    /// URLs for the machine: those segments that there are of what it reads, and as many as are usual
    /// of what it writes.
    pub(super) fn urls(&self, files: usize, stdin: usize, valid: Duration) -> Result<Store> {
        let url = |text: String| Url::new(&text).context("a URL cannot be used");
        let get = |name: &str| url(self.s3.url_to_get(&self.key(name), valid));
        let put = |name: &str| url(self.s3.url_to_put(&self.key(name), valid));
        let reads = |stream, count: usize| -> Result<Vec<Url>> {
            (0..count).map(|at| get(&segment(stream, at))).collect()
        };
        let writes = |stream| -> Result<Vec<Url>> {
            (0..SEGMENTS).map(|at| put(&segment(stream, at))).collect()
        };
        Ok(Store {
            files: reads("files", files)?,
            stdin: reads("stdin", stdin)?,
            stdout: writes("stdout")?,
            stderr: writes("stderr")?,
            results: writes("results")?,
            report: Some(put(REPORT)?),
            control: Some(get(CONTROL)?),
        })
    }

    /// Where the contract is.
    pub(super) fn document_url(&self, valid: Duration) -> Result<Url> {
        Ok(Url::new(&self.s3.url_to_get(&self.key(DOCUMENT), valid))?)
    }

    /// For people.
    pub(super) fn place(&self, bucket: &str) -> String {
        format!("s3://{bucket}/{}", self.prefix)
    }

    /// Results, as far as they are there: the stream that [`Staging::receive`] takes. `goes_on` is asked before
    /// each piece.
    pub(super) fn results<'a>(&'a self, goes_on: &'a dyn Fn() -> bool) -> Result<impl Read + 'a> {
        let segments = Segments {
            objects: self,
            goes_on,
            stream: "results",
            at: Position::default(),
            piece: io::Cursor::default(),
        };
        Ok(zstd::stream::read::Decoder::new(segments)?)
    }
}

/// The name of a segment.
pub(super) fn segment(stream: &str, index: usize) -> String {
    format!("{stream}/{index:02}")
}

/// Whether it is the machine that stores what has this name.
pub(super) fn is_of_machine(name: &str) -> bool {
    let own = ["stdout/", "stderr/", "results/", REPORT];
    own.iter().any(|start| name.starts_with(start))
}

/// Whether there is something of a stream.
pub(super) fn has(sizes: &Sizes, stream: &str) -> bool {
    sizes.contains_key(&segment(stream, 0))
}

/// A place in a segmented stream.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Position {
    segment: usize,
    offset: u64,
}

impl Position {
    /// Reads on, up to `most` bytes; `None` when there is nothing more yet.
    pub(super) fn read(
        &mut self,
        objects: &Objects,
        stream: &str,
        most: u64,
    ) -> apppot_cloud::Result<Option<Vec<u8>>> {
        let whole = segment_size(self.segment);
        if self.offset == whole {
            (self.segment, self.offset) = (self.segment + 1, 0);
            return self.read(objects, stream, most);
        }
        let most = most.min(whole - self.offset);
        let name = segment(stream, self.segment);
        let piece = objects.get(&name, self.offset, most)?;
        let piece = piece.filter(|piece| !piece.is_empty());
        self.offset += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }

    /// Whether an object of these sizes has more.
    pub(super) fn has_more(&self, sizes: &Sizes, stream: &str) -> bool {
        let (index, offset) = match self.offset == segment_size(self.segment) {
            true => (self.segment + 1, 0),
            false => (self.segment, self.offset),
        };
        let size = sizes.get(&segment(stream, index));
        size.is_some_and(|&size| size > offset)
    }
}

/// A stream from its first segment to its last.
struct Segments<'a> {
    objects: &'a Objects,
    goes_on: &'a dyn Fn() -> bool,
    stream: &'static str,
    at: Position,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Segments<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.piece.read(buffer)?;
        if len > 0 || buffer.is_empty() {
            return Ok(len);
        }
        if !(self.goes_on)() {
            return Err(io::Error::other("it was stopped"));
        }
        let piece = self.at.read(self.objects, self.stream, MOST_READ);
        match piece.map_err(io::Error::other)? {
            None => Ok(0),
            Some(piece) => {
                self.piece = io::Cursor::new(piece);
                self.piece.read(buffer)
            }
        }
    }
}

/// What writes to it goes on for as long as somebody wants it to.
struct Until<'a, W> {
    to: W,
    goes_on: &'a dyn Fn() -> bool,
}

impl<W: Write> Write for Until<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (self.goes_on)() {
            true => self.to.write(bytes),
            false => Err(io::Error::other("it was stopped")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The job's files as their stream, in a file without a name; `goes_on` is asked before each piece.
pub(super) fn pack(staging: &Staging, goes_on: &dyn Fn() -> bool) -> Result<File> {
    let file = tempfile::tempfile().context("cannot make a file for what is sent")?;
    let mut encoder = zstd::stream::write::Encoder::new(Until { to: &file, goes_on }, 0)?;
    staging.send(&mut encoder)?;
    encoder.finish()?.flush()?;
    Ok(file)
}

/// Standard input to its end, in a file without a name; `goes_on` is asked now and then.
pub(super) fn spool(goes_on: &dyn Fn() -> bool) -> Result<File> {
    let mut file = tempfile::tempfile().context("cannot make a file for standard input")?;
    let input = io::stdin();
    let mut buffer = vec![0; 1 << 16];
    let often = PollTimeout::from(200u8);
    let failed = "standard input could not be read to its end";
    loop {
        let mut ready = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        let count = poll(&mut ready, often).context(failed)?;
        if !goes_on() {
            return Err(apppot_cloud::Error::Stopped.into());
        }
        if count == 0 {
            continue;
        }
        match nix::unistd::read(input.as_fd(), &mut buffer) {
            Ok(0) => return Ok(file),
            Ok(len) => file.write_all(&buffer[..len])?,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(errno) => return Err(errno).context(failed),
        }
    }
}
