//! A job that comes by user-data runs once on its machine. User-data is there after a reboot, too, and after a
//! panic, which is one; whoever runs a job twice may ruin what the first run has made.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a machine keeps which job it has, and how far that is: a line each.
const RECORD: &str = "var/lib/apppot/job";

const BEGUN: &str = "begun";
const ENDED: &str = "ended";

/// How far a job was before this boot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// It was not here.
    Nothing,
    /// Nobody knows how far.
    Begun,
    /// Its report had been dealt with.
    Ended,
}

/// The record of a job.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    job: String,
}

impl Record {
    /// Of the job with this document, whose secrets stay out of the record: it has a hash. A disk may be a copy of
    /// another machine's: with another job's record.
    pub(crate) fn of(root: &Path, document: &str) -> Self {
        let path = root.join(RECORD);
        let job = blake3::hash(document.as_bytes()).to_string();
        Record { path, job }
    }

    /// How far it was. From now on it has begun.
    pub(crate) fn begin(&self) -> Before {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let before = match text.strip_prefix(&self.job[..]).map(str::trim) {
            Some(BEGUN) => return Before::Begun,
            Some(ENDED) => return Before::Ended,
            _ => Before::Nothing,
        };
        self.write(BEGUN);
        before
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        self.write(ENDED);
    }

    /// Where nothing can be written the job runs all the same.
    fn write(&self, state: &str) {
        let text = format!("{}\n{state}\n", self.job);
        if let Err(error) = replace(&self.path, text.as_bytes()) {
            eprintln!("apppot-init: {}: {error}", self.path.display());
        }
    }
}

/// Writes a file that is there, whole, also when the machine ends right after.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory)?;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_begins_once() {
        let root = tempfile::tempdir().unwrap();
        let record = |document: &str| Record::of(root.path(), document);
        assert_eq!(record("http://s/a").begin(), Before::Nothing);
        assert_eq!(record("http://s/a").begin(), Before::Begun);
        record("http://s/a").end();
        assert_eq!(record("http://s/a").begin(), Before::Ended);
        let kept = fs::read_to_string(root.path().join(RECORD)).unwrap();
        assert!(!kept.contains("http"), "{kept}");
        // Of a machine whose disk was copied.
        assert_eq!(record("http://s/ab").begin(), Before::Nothing);
        assert_eq!(record("http://s/ab").begin(), Before::Begun);
        assert_eq!(record("http://s/a").begin(), Before::Nothing);
    }

    #[test]
    fn what_cannot_be_written_keeps_no_job_from_running() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let record = Record::of(file.path(), "a");
        assert_eq!(record.begin(), Before::Nothing);
        record.end();
    }
}
