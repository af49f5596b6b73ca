//! Reading tar archives: V7, ustar, pax, GNU (long names, sparse files of all four kinds). Memory is
//! bounded whatever the archive says; a checksum that is wrong, a number that is none, an unknown kind
//! of member and an early end are errors.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

use apppot_snapshot::entry::Meta;

use crate::{error::shown, Error, Result};
use header::Header;
use pax::Pax;

/// Headers and contents begin on a block.
const BLOCK: usize = 512;
/// Longest header of a member: pax records, long names.
const LONGEST: u64 = 1 << 20;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a member before.
    Link(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Stretches of a file as (offset, length).
pub type Runs = Vec<(u64, u64)>;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The path as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Everything that chmod, chown, touch and setfattr change.
    pub meta: Meta,
    /// Length of a regular file, bytes.
    pub size: u64,
    /// The stretches of data of a sparse file as (offset, length), in order; `None` for a file without
    /// a map. The bytes of the stretches, one after the other, are the member's content.
    pub runs: Option<Runs>,
    /// Whether it has an access control list as text, which is not taken.
    pub has_text_acl: bool,
}

/// The most that is read behind the end. Records have 10 KiB, or what `tar --blocking-factor` says.
const LAST_RECORD: u64 = 1 << 20;

/// An archive that is read from its beginning to its end.
pub struct Reader<R> {
    inner: R,
    /// Bytes of the current member's content that have not been read, and those that fill its block.
    left: u64,
    padding: u64,
    global: Pax,
    /// Whether an archive may end without the blocks that say so.
    lenient: bool,
}

/// What stands before a member and belongs to it.
#[derive(Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

impl<R: Read> Reader<R> {
    /// An archive. With `lenient` it may end without the zero blocks that say so: a checksum of the
    /// whole tells that it is complete.
    pub fn new(inner: R, lenient: bool) -> Self {
        Reader {
            inner,
            left: 0,
            padding: 0,
            global: Pax::default(),
            lenient,
        }
    }

    /// What the archive is read from.
    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next member, after what was left unread of the one before. `None` at the end.
    ///
    /// # Errors
    /// Reading fails, or the archive breaks a rule.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut before = Before::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.kind() {
                b'x' => {
                    let records = self.long(&header)?;
                    before.pax.read(&records)?;
                }
                b'g' => {
                    let records = self.long(&header)?;
                    self.global.read(&records)?;
                }
                b'L' => before.path = Some(self.long_name(&header)?),
                b'K' => before.link = Some(self.long_name(&header)?),
                // A volume's label.
                b'V' => self.skip(header.size()?.next_multiple_of(BLOCK as u64))?,
                _ => return self.member(&header, before).map(Some),
            }
        }
    }

    /// Skips and checks nothing.
    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = io::copy(&mut self.inner.by_ref().take(len), &mut io::sink());
        match skipped.map_err(Error::io("read the archive"))? {
            skipped if skipped == len => Ok(()),
            _ => Err(Error::Truncated),
        }
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            0 if self.lenient => return Ok(None),
            BLOCK => {}
            _ => return Err(Error::Truncated),
        }
        if block == [0; BLOCK] {
            self.finish();
            return Ok(None);
        }
        Header::new(block).map(Some)
    }

    /// Reads what fills an archive's last record: whoever writes into a pipe would fail at that. It means
    /// nothing, so neither does an error; of what else may follow, no more than a part is read.
    fn finish(&mut self) {
        let _ = io::copy(&mut self.inner.by_ref().take(LAST_RECORD), &mut io::sink());
    }

    /// Fills as much of `buffer` as there are bytes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while len < buffer.len() {
            match self.inner.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the archive")(error)),
            }
        }
        Ok(len)
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            BLOCK => Ok(block),
            _ => Err(Error::Truncated),
        }
    }

    /// The content of a header that belongs to the next member.
    fn long(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > LONGEST {
            return Err(Error::Malformed(format!("a header of {size} bytes")));
        }
        let mut content = vec![0; (size as usize).next_multiple_of(BLOCK)];
        if self.fill(&mut content)? < content.len() {
            return Err(Error::Truncated);
        }
        content.truncate(size as usize);
        Ok(content)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>> {
        let mut name = self.long(header)?;
        let end = name.iter().position(|byte| *byte == 0);
        name.truncate(end.unwrap_or(name.len()));
        Ok(name)
    }

    fn member(&mut self, header: &Header, before: Before) -> Result<Member> {
        let mut pax = self.global.clone();
        pax.add(before.pax);
        let named = |why: String| Error::Malformed(format!("'{}': {why}", shown(&header.name())));
        let path = pax
            .path
            .take()
            .or(before.path)
            .unwrap_or_else(|| header.name());
        let link = pax
            .link
            .take()
            .or(before.link)
            .unwrap_or_else(|| header.link());
        let kind = header.member_kind(&path, link)?;
        // Other kinds have no content, whatever their header says; links of old archives say so.
        let stored = match kind {
            Kind::File => pax.size.map_or_else(|| header.size(), Ok)?,
            _ => 0,
        };
        self.left = stored;
        self.padding = stored
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| named(String::from("its size")))?
            - stored;
        let (size, runs) = match kind {
            Kind::File => self.sparse(header, &mut pax, stored)?,
            _ => (0, None),
        };
        Ok(Member {
            path: pax.sparse.name.take().unwrap_or(path),
            kind,
            meta: Meta {
                mode: header.mode()?,
                uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
                gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
                mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
                xattrs: pax.xattrs(),
            },
            size,
            runs,
            has_text_acl: pax.has_text_acl,
        })
    }

    /// The length and the map of a file, of which `stored` bytes are in the archive.
    fn sparse(
        &mut self,
        header: &Header,
        pax: &mut Pax,
        stored: u64,
    ) -> Result<(u64, Option<Runs>)> {
        let (size, runs) = if header.kind() == b'S' {
            let mut runs = header.sparse_runs()?;
            let mut more = header.has_more_runs();
            while more {
                let block = self.block()?;
                more = sparse::extension(&block, &mut runs)?;
            }
            (header.real_size()?, runs)
        } else if let Some(version) = pax.sparse.version() {
            let size = pax.sparse.size.unwrap_or(stored);
            let runs = match version {
                sparse::Version::Records => std::mem::take(&mut pax.sparse.runs),
                sparse::Version::Stored => sparse::stored(&mut || {
                    let left = self.left.checked_sub(BLOCK as u64);
                    self.left = left.ok_or(Error::Truncated)?;
                    self.block()
                })?,
            };
            (size, runs)
        } else {
            return Ok((stored, None));
        };
        sparse::check(size, &runs, self.left)?;
        Ok((size, Some(runs)))
    }
}

/// The content of the member that was read last.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let len = self.inner.read(&mut buffer[..most])?;
        self.left -= len as u64;
        Ok(len)
    }
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
