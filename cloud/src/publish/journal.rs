//! What has arrived of an upload: a file of lines, the snapshot's id first, then the blocks' numbers.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use crate::{Error, Result};

/// The journal of one upload. Nobody else may write to its file meanwhile.
#[derive(Debug)]
pub struct Journal {
    file: File,
    snapshot: Option<String>,
    arrived: HashSet<u32>,
}

impl Journal {
    /// Reads what there is. A line that was not finished does not count: the block is sent again.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(mut file: File) -> Result<Self> {
        let mut text = Vec::new();
        let read = file.read_to_end(&mut text);
        read.map_err(Error::io("read the journal of the upload"))?;
        text.truncate(
            text.iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |end| end + 1),
        );
        let cut = file.set_len(text.len() as u64);
        cut.and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(Error::io("write the journal of the upload"))?;
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let first = lines.next().and_then(|line| line.strip_prefix("snapshot "));
        let arrived = lines.filter_map(|line| line.parse().ok());
        Ok(Journal {
            file,
            snapshot: first.map(str::to_owned),
            arrived: arrived.filter(|_| first.is_some()).collect(),
        })
    }

    /// The snapshot that was begun.
    #[must_use]
    pub fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// Whether the block has arrived.
    #[must_use]
    pub fn has(&self, block: u32) -> bool {
        self.arrived.contains(&block)
    }

    /// Begins anew.
    pub(super) fn begin(&mut self, snapshot: &str) -> Result<()> {
        self.arrived.clear();
        self.snapshot = Some(snapshot.to_owned());
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(Error::io("write the journal of the upload"))?;
        self.write(&format!("snapshot {snapshot}\n"))
    }

    /// A block has arrived.
    pub(super) fn note(&mut self, block: u32) -> Result<()> {
        self.arrived.insert(block);
        self.write(&format!("{block}\n"))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(Error::io("write the journal of the upload"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopened(file: &File, more: &str) -> Journal {
        let mut file = file.try_clone().unwrap();
        file.write_all(more.as_bytes()).unwrap();
        file.rewind().unwrap();
        Journal::open(file).unwrap()
    }

    #[test]
    fn an_upload_goes_on_where_it_was() {
        let file = tempfile::tempfile().unwrap();
        let mut journal = reopened(&file, "");
        assert_eq!(journal.snapshot(), None);
        journal.begin("snap-1").unwrap();
        journal.note(7).unwrap();
        journal.note(300).unwrap();
        // Killed in the middle of a line.
        let mut journal = reopened(&file, "12");
        assert_eq!(journal.snapshot(), Some("snap-1"));
        assert!(journal.has(7) && journal.has(300) && !journal.has(12));
        journal.note(5).unwrap();
        let mut journal = reopened(&file, "");
        assert!(journal.has(5) && !journal.has(12) && !journal.has(125));
        journal.begin("snap-2").unwrap();
        let journal = reopened(&file, "");
        assert_eq!(journal.snapshot(), Some("snap-2"));
        assert!(!journal.has(7));
    }

    #[test]
    fn what_is_no_journal_counts_as_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(reopened(&file, "\0\u{1}garbage\n7\n").snapshot(), None);
        assert_eq!(reopened(&file, "").snapshot(), None);
    }
}
