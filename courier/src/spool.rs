//! What a segment holds so far, in a file without a name: it is sent again when there is more.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Where there is room: memory may be small.
const PLACE: &str = "/var/tmp";

/// The bytes of one segment.
#[derive(Clone)]
pub(crate) struct Spool {
    file: Arc<File>,
    length: u64,
}

impl Spool {
    pub(crate) fn new() -> io::Result<Self> {
        let file = match Path::new(PLACE).is_dir() {
            true => tempfile::tempfile_in(PLACE),
            false => tempfile::tempfile(),
        };
        Ok(Spool {
            file: Arc::new(file?),
            length: 0,
        })
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// What is there now, from the start. More may be appended meanwhile.
    pub(crate) fn reader(&self) -> impl Read {
        Reader {
            spool: self.clone(),
            at: 0,
        }
    }
}

struct Reader {
    spool: Spool,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.spool.length - self.at;
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let len = self.spool.file.read_at(&mut buffer[..most], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
