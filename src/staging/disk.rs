//! Files without a name that the guest sees as disks, and the one with a name for what has no place.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use apppot_snapshot::transfer::RESULTS;

use crate::failure::hinted;

/// Disks are whole sectors, and hold at least one.
const SECTOR: u64 = 4096;
/// What tar adds to the contents of files, at most, and some room.
const OVERHEAD: u64 = 1 << 30;
/// The largest disk for results: what the smallest filesystems take as one file's size (ext4 with
/// blocks of 4 KiB).
const MOST: u64 = 15 << 40;

/// What helps where there is no room for them.
pub(crate) const ROOM: &str =
    "set TMPDIR to a directory with more room, or do without disks: --channel link";

/// The disks of one machine.
#[derive(Debug)]
pub(super) struct Disks {
    /// Where they are.
    pub(super) directory: PathBuf,
    pub(super) input: Arc<File>,
    pub(super) results: Arc<File>,
}

impl Disks {
    /// Makes them, results to be at most so many bytes.
    pub(super) fn make(most: u64) -> Result<Self> {
        let directory = scratch().next().unwrap_or_else(|| PathBuf::from("/tmp"));
        let make = || {
            tempfile::tempfile_in(&directory).with_context(|| {
                format!("cannot make a disk for files in '{}'", directory.display())
            })
        };
        let (input, results) = (make()?, make()?);
        // A file with a hole: only what is written takes room.
        let size = most.saturating_add(OVERHEAD).min(MOST) / SECTOR * SECTOR;
        let begun = results.write_all_at(RESULTS, 0);
        begun
            .and_then(|()| results.set_len(size))
            .map_err(|error| {
                let place = directory.display();
                hinted(error.to_string(), ROOM)
                    .context(format!("cannot make a disk for results in '{place}'"))
            })?;
        Ok(Disks {
            directory,
            input: Arc::new(input),
            results: Arc::new(results),
        })
    }

    /// The input has been written: it becomes whole sectors.
    pub(super) fn finish_input(&self) -> Result<()> {
        let len = self.input.metadata()?.len();
        Ok(self.input.set_len(len.next_multiple_of(SECTOR))?)
    }

    /// The results from their start.
    pub(super) fn read_results(&self) -> Option<impl Read + Send> {
        let mut file = self.results.try_clone().ok()?;
        file.seek(SeekFrom::Start(0)).ok()?;
        Some(std::io::BufReader::with_capacity(1 << 20, file))
    }
}

/// Directories for large files, the best first.
fn scratch() -> impl Iterator<Item = PathBuf> {
    let chosen = std::env::var_os("TMPDIR").map(PathBuf::from);
    let fixed = ["/var/tmp", "/tmp", "/dev/shm"].map(PathBuf::from);
    chosen
        .into_iter()
        .chain(fixed)
        .filter(|path| path.is_absolute() && path.is_dir())
}

/// Makes the file for what cannot be put into the job directory, on another filesystem than that.
pub(super) fn rest(jobdir: &Path, id: &str) -> Option<(File, PathBuf)> {
    let device = std::fs::metadata(jobdir).ok()?.dev();
    let elsewhere =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|place| place.dev() != device);
    let own = std::env::var_os("HOME").map(PathBuf::from);
    let mut places = scratch().chain(own).filter(elsewhere);
    places.find_map(|place| {
        let path = place.join(format!("apppot-rest-{id}-{}.tar", std::process::id()));
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.ok().map(|file| (file, path))
    })
}
