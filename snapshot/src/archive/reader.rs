//! Reading an archive, which is trusted in nothing.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use super::chunks::{Aligned, Chunks};
use super::writer::member;
use super::{Manifest, SECTOR, TRAILER, TRAILER_MAGIC};
use crate::base::{MAGIC as BASE_MAGIC, WINDOW_LOG};
use crate::entry::{Content, Entry, Hash, Kind, HASH_LEN};
use crate::{tar, Error, Result};

/// First word of a zstd frame.
const ZSTD: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
/// Largest manifest that is read, and kept in memory for it: some 128 bytes for each of the most
/// changes.
const MAX_MANIFEST: u64 = 256 << 20;
/// Bytes that are unpacked at a time.
const PIECE: usize = 1 << 17;

/// An archive whose manifest has been read.
pub struct Archive {
    /// The checksum.
    pub id: Hash,
    /// Its length, bytes.
    pub len: u64,
    /// What is in it.
    pub manifest: Manifest,
    input: Input,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("id", &tar::hex(&self.id))
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

type Input = BufReader<zstd::Decoder<'static, Chunks>>;

/// Opens the file of an archive, which nobody has to fill while it is read.
///
/// # Errors
/// It cannot be opened, or is no file.
pub fn open_file(path: &std::path::Path) -> Result<File> {
    // Opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(Error::file("open", path))?;
    if !metadata.is_file() {
        let error = io::Error::other("it is no regular file");
        return Err(Error::file("open", path)(error));
    }
    File::open(path).map_err(Error::file("open", path))
}

impl Archive {
    /// Opens an archive, a file or a block device, examines its checksum and reads its manifest.
    ///
    /// # Errors
    /// It cannot be read, is no archive or one of another version, is truncated or damaged, or
    /// breaks a rule of the format.
    pub fn open(file: File) -> Result<Self> {
        let (len, id) = trailer(&file)?;
        let chunks = Chunks::new(file, len);
        let file = chunks.check(&id)?;
        Self::unpack(Chunks::new(file, len), len, id)
    }

    /// Opens an archive whose checksum is examined while it is merged, and found to be wrong at the
    /// end only: for trees that nobody sees when the merge fails. Every content is compared with its
    /// own hash all the same.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for the checksum.
    pub fn stream(file: File) -> Result<Self> {
        let (len, id) = trailer(&file)?;
        let mut chunks = Chunks::new(file, len);
        chunks.expected = Some(id);
        Self::unpack(chunks, len, id)
    }

    fn unpack(chunks: Chunks, len: u64, id: Hash) -> Result<Self> {
        let failed = Error::stream::<io::Error>;
        let what = "read the archive";
        let mut decoder = zstd::Decoder::with_buffer(chunks).map_err(failed(what))?;
        decoder.window_log_max(WINDOW_LOG).map_err(failed(what))?;
        let mut input = BufReader::with_capacity(PIECE, decoder.single_frame());
        let manifest = read_manifest(&mut input)?;
        Ok(Archive {
            id,
            len,
            manifest,
            input,
        })
    }

    /// What is in it, and the members' contents.
    #[must_use]
    pub fn into_parts(self) -> (Manifest, Members) {
        let members = Members {
            input: self.input,
            buffer: Vec::new(),
        };
        (self.manifest, members)
    }

    /// Reads everything and compares every content with its hash.
    ///
    /// # Errors
    /// The archive is malformed.
    pub fn verify(self) -> Result<()> {
        let (manifest, mut members) = self.into_parts();
        for change in &manifest.changes {
            if let Some(entry) = member(&change.action) {
                members.next(entry, &mut |_, _| Ok(()))?;
            }
        }
        members.finish()
    }
}

/// The checksum that an archive says it has; nothing is examined.
///
/// # Errors
/// It cannot be read, is no archive, or is truncated.
pub fn claimed_id(file: &File) -> Result<Hash> {
    trailer(file).map(|(_, id)| id)
}

/// The length of an archive and the checksum that it has at its end.
fn trailer(file: &File) -> Result<(u64, Hash)> {
    let failed = Error::stream::<io::Error>;
    let what = "read the archive";
    // The length of a block device is where its end is.
    let mut end = file;
    let len = end.seek(SeekFrom::End(0)).map_err(failed(what))?;
    let mut block = Aligned::new(SECTOR as usize);
    if len < 4 {
        return Err(Error::NotArchive(String::from("it is empty")));
    }
    block.read(file, 0).map_err(failed(what))?;
    if !block.bytes().starts_with(&ZSTD) {
        return Err(Error::NotArchive(String::from(
            "it is not in zstd's format",
        )));
    }
    if len < TRAILER as u64 || len % SECTOR != 0 {
        return Err(without_end(file));
    }
    block.read(file, len - SECTOR).map_err(failed(what))?;
    let end = block.bytes();
    let (rest, hash) = end.split_at(end.len() - HASH_LEN);
    if !rest.ends_with(TRAILER_MAGIC) {
        return Err(without_end(file));
    }
    let mut id = [0; HASH_LEN];
    id.copy_from_slice(hash);
    Ok((len, id))
}

/// What is wrong with a file that does not end as archives do.
fn without_end(mut file: &File) -> Error {
    let mut start = Vec::new();
    if file.rewind().is_ok() {
        if let Ok(decoder) = zstd::Decoder::new(file) {
            // As much as there is.
            let _ = decoder
                .take(BASE_MAGIC.len() as u64)
                .read_to_end(&mut start);
        }
    }
    match start == BASE_MAGIC {
        true => Error::NotArchive(String::from(
            "it is a recorded base, which 'apppot snap changes --base' takes",
        )),
        false => Error::Truncated,
    }
}

fn read_manifest(input: &mut impl Read) -> Result<Manifest> {
    let mut header = [0; tar::BLOCK];
    exactly(input, &mut header)?;
    let len = tar::manifest_size(&header).filter(|len| tar::manifest_header(*len) == header);
    let len = len.ok_or_else(|| {
        Error::NotArchive(String::from("its first member is not '.apppot-changes'"))
    })?;
    if len > MAX_MANIFEST {
        return Err(Error::Limit(String::from("the archive's manifest")));
    }
    // The buffer grows with what is really there, whatever the header says.
    let mut bytes = Vec::new();
    let mut limited = input.take(len);
    limited.read_to_end(&mut bytes).map_err(unpacking)?;
    if bytes.len() as u64 != len {
        return Err(malformed("its manifest is incomplete"));
    }
    skip_padding(input, len)?;
    Manifest::decode(&bytes)
}

/// The members of an archive, one after the other.
pub struct Members {
    input: Input,
    buffer: Vec<u8>,
}

impl Members {
    /// Reads the next member, which must be `entry`'s; content goes to `sink` with its offset.
    ///
    /// # Errors
    /// It is another one, its content is not what the manifest says, or `sink` fails.
    pub fn next(
        &mut self,
        entry: &Entry,
        sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let wanted = tar::header(entry);
        let mut header = vec![0; wanted.len()];
        exactly(&mut self.input, &mut header)?;
        if header != wanted {
            let path = entry.shown();
            return Err(Error::Malformed(format!(
                "the member of '{}' is not what the manifest says",
                path.display()
            )));
        }
        match &entry.kind {
            Kind::File(content) => self.content(entry, content, sink),
            _ => Ok(()),
        }
    }

    fn content(
        &mut self,
        entry: &Entry,
        content: &Content,
        sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        let wanted = content.stored().min(PIECE as u64) as usize;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        let buffer = &mut self.buffer;
        for (start, len) in content.stretches() {
            let mut done = 0;
            while done < len {
                let part = (len - done).min(buffer.len() as u64) as usize;
                exactly(&mut self.input, &mut buffer[..part])?;
                hasher.update(&buffer[..part]);
                sink(start + done, &buffer[..part])?;
                done += part as u64;
            }
        }
        if *hasher.finalize().as_bytes() != content.hash {
            let path = entry.shown();
            return Err(Error::Malformed(format!(
                "the content of '{}' is not what the manifest says",
                path.display()
            )));
        }
        skip_padding(&mut self.input, content.stored())
    }

    /// Sees that nothing follows.
    ///
    /// # Errors
    /// Something does.
    pub fn finish(mut self) -> Result<()> {
        let mut end = [1; 2 * tar::BLOCK];
        exactly(&mut self.input, &mut end)?;
        let mut more = [0];
        let more = self.input.read(&mut more).map_err(unpacking)?;
        if more > 0 || end.iter().any(|byte| *byte != 0) {
            return Err(malformed("there is more in it than its manifest says"));
        }
        self.input.into_inner().finish().finish()
    }
}

fn skip_padding(input: &mut impl Read, len: u64) -> Result<()> {
    let mut padding = [0; tar::BLOCK];
    let padding = &mut padding[..tar::padding(len)];
    exactly(input, padding)?;
    match padding.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(malformed("there are bytes between its members")),
    }
}

fn exactly(input: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    input.read_exact(buffer).map_err(unpacking)
}

fn unpacking(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("its content ends early"),
        _ => Error::stream("unpack the archive")(error),
    }
}

fn malformed(reason: &str) -> Error {
    Error::Malformed(reason.to_owned())
}
