//! The images that are kept for machines with large changes: `$XDG_CACHE_HOME/apppot/committed`.
//!
//! Of each there is `NAME`, a note, and, unless the archives have been used once only, `NAME.img`. The
//! note is what whoever makes the image locks; its time is that of the last use; its text is the
//! image's stamp, or says that the image could not be made. An image without its own stamp in its
//! note is half made or somebody else's work, and made again. `NAME.img.apppot-new-PID` is on its way, or left
//! by what was killed. Whoever makes any image has the lock of `lock`, so that what all take can be known.
//! All of it may be removed at any time.

use std::fs::{self, DirBuilder, File, FileTimes};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{ensure, Context, Result};
use apppot_backends::flock::{self, Use};
use apppot_backends::image::Image;
use apppot_backends::Error;
use nix::unistd::geteuid;

use crate::trust;

/// What all images may take, bytes of disk.
const MOST: u64 = 10 << 30;
/// An image that was used so recently may be about to be booted.
const IN_USE: Duration = Duration::from_secs(600);
/// A note without an image, or a file that nobody has finished, is forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);
/// What could not be made is tried again after this: the reason may have been a full disk, or another kernel.
const AGAIN: Duration = Duration::from_secs(600);
const FAILED: &str = "failed";
/// The file that all makers lock.
const LOCK: &str = "lock";

/// The directory.
#[derive(Debug)]
pub(crate) struct Kept {
    directory: PathBuf,
}

/// A note and its image.
#[derive(Debug)]
pub(super) struct Entry {
    note: PathBuf,
    /// The image.
    pub(super) path: PathBuf,
}

impl Kept {
    /// The caller's, which may not be there yet.
    pub(crate) fn find() -> Option<Self> {
        let directory = crate::caller::cache_directory()?.join("committed");
        Some(Kept { directory })
    }

    /// Makes it, if there is none.
    pub(super) fn create(&self) -> Result<()> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.with_context(|| format!("cannot make '{}'", self.directory.display()))
    }

    /// Makes sure that nobody but the caller can put anything there, or another directory in its place.
    ///
    /// # Errors
    /// Somebody else can, or it is not there.
    pub(super) fn check(&mut self) -> Result<()> {
        let uid = geteuid().as_raw();
        let mut is_own = trust::is_directory_of(&self.directory, uid);
        if is_own {
            // Nobody can lead links elsewhere from now on.
            self.directory = fs::canonicalize(&self.directory)?;
            is_own = trust::stays(&self.directory, uid);
        }
        ensure!(
            is_own,
            "'{}' is no directory that nobody but you can write into",
            self.directory.display()
        );
        // It might be made again at each use.
        ensure!(
            trust::has_true_stamps(&self.directory),
            "the filesystem of '{}' is not the kernel's own",
            self.directory.display()
        );
        Ok(())
    }

    /// Takes the lock of those that make images, if nobody has it.
    pub(super) fn lock(&self) -> Result<Option<File>> {
        let path = self.directory.join(LOCK);
        let mut options = note_options();
        let file = options.write(true).create(true).mode(0o600).open(&path);
        lock(file, &path)
    }

    /// Its filesystem's number.
    pub(super) fn device(&self) -> Option<u64> {
        let metadata = fs::metadata(&self.directory).ok()?;
        Some(metadata.dev())
    }

    pub(super) fn entry(&self, name: &str) -> Entry {
        Entry {
            note: self.directory.join(name),
            path: self.directory.join(format!("{name}.img")),
        }
    }

    /// The entry that the file at `path` belongs to.
    fn entry_of(&self, path: &Path) -> Option<Entry> {
        let name = path.file_name()?.to_str()?;
        Some(self.entry(name.split('.').next()?))
    }

    /// How many images there are, the bytes of disk that they take, and where.
    pub(crate) fn summary(&self) -> (usize, u64, &Path) {
        (self.images().len(), self.sum(), &self.directory)
    }

    /// Bytes of disk that all images take, also unfinished ones.
    fn sum(&self) -> u64 {
        let files = self.paths().filter(|path| path.extension().is_some());
        files
            .filter_map(|path| fs::symlink_metadata(path).ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    }

    /// Makes room for an image of `needed` bytes: forgets what has not been used for longest. The caller has
    /// the lock of those that make images.
    ///
    /// # Errors
    /// There is no room, or it would take too much of the disk.
    pub(super) fn make_room(&self, needed: u64) -> Result<()> {
        ensure!(needed <= MOST, "it would take {} MiB", needed >> 20);
        self.sweep();
        self.shrink(MOST - needed);
        let sum = self.sum();
        ensure!(
            sum + needed <= MOST,
            "it would take {} MiB beside {} MiB that are in use in '{}'",
            needed >> 20,
            sum >> 20,
            self.directory.display()
        );
        let disk = nix::sys::statvfs::statvfs(&self.directory)?;
        #[allow(clippy::unnecessary_cast)]
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        ensure!(
            needed <= free / 2,
            "it would take {} MiB of the {} that are free in '{}'",
            needed >> 20,
            free >> 20,
            self.directory.display()
        );
        Ok(())
    }

    /// Forgets what was not used for longest until the images take `most` bytes.
    fn shrink(&self, most: u64) {
        let mut sum = self.sum();
        for (used, blocks, entry) in self.images() {
            if sum <= most {
                return;
            }
            if age(used) > IN_USE && entry.remove() {
                sum -= blocks;
            }
        }
    }

    /// Forgets notes of what was used once, and files that a killed process has left; but nothing of an
    /// image that is being made.
    pub(super) fn sweep(&self) {
        let is_old = |path: &Path| {
            let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|time| age(time) > FORGOTTEN)
        };
        for path in self.paths() {
            let is_image = path.extension().is_some_and(|ending| ending == "img");
            let Some(entry) = self.entry_of(&path).filter(|_| is_old(&path) && !is_image) else {
                continue;
            };
            if path == entry.note && entry.path.exists() {
                continue;
            }
            let Some(_lock) = entry.lock_or_none() else {
                continue;
            };
            // Who had the lock may have used it.
            if is_old(&path) {
                // What cannot be removed is in nobody's way.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// The images, when they were used, and what they take; the oldest first.
    fn images(&self) -> Vec<(SystemTime, u64, Entry)> {
        let mut images: Vec<_> = self
            .paths()
            .filter(|path| path.extension().is_some_and(|ending| ending == "img"))
            .filter_map(|path| {
                let note = path.with_extension("");
                let image = fs::metadata(&path).ok()?;
                let used = fs::metadata(&note).and_then(|note| note.modified());
                let used = used.or_else(|_| image.modified()).ok()?;
                Some((used, image.blocks() * 512, Entry { note, path }))
            })
            .collect();
        images.sort_by_key(|(used, ..)| *used);
        images
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| !path.ends_with(LOCK))
    }
}

impl Entry {
    /// The image, if it is the one that was made.
    pub(super) fn image(&self) -> Option<Image> {
        let noted = self.text()?;
        if !trust::is_file_of(&self.path, geteuid().as_raw()) {
            return None;
        }
        let image = Image::open(&self.path).ok()?;
        (image.stamp?.to_string() == noted).then_some(image)
    }

    fn open(&self, writes: bool) -> io::Result<File> {
        let note = note_options().write(writes).open(&self.note)?;
        match note.metadata()?.is_file() {
            true => Ok(note),
            false => Err(io::Error::other("it is no regular file")),
        }
    }

    fn text(&self) -> Option<String> {
        let mut text = String::new();
        let note = self.open(false).ok()?;
        note.take(256).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Notes that it is used now.
    pub(super) fn touch(&self) {
        let now = FileTimes::new().set_modified(SystemTime::now());
        // What cannot be noted is forgotten too early.
        let _ = self.open(true).and_then(|note| note.set_times(now));
    }

    /// Whether nobody has asked for it before; from now on somebody has.
    pub(super) fn is_first_use(&self) -> Result<bool> {
        match File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.note)
        {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("cannot make '{}'", self.note.display()))
            }
        }
    }

    /// Takes the lock, if nobody has it.
    pub(super) fn lock(&self) -> Result<Option<File>> {
        lock(self.open(true), &self.note)
    }

    /// Makes sure that nobody makes it, also where there is no note; `None` if somebody does.
    fn lock_or_none(&self) -> Option<Option<File>> {
        match self.lock() {
            Ok(Some(note)) => Some(Some(note)),
            Err(_) if fs::symlink_metadata(&self.note).is_err() => Some(None),
            _ => None,
        }
    }

    /// Removes what killed makers have left. The caller has the lock.
    pub(super) fn clean(&self) {
        let Some((directory, name)) = self.path.parent().zip(self.path.file_name()) else {
            return;
        };
        let mut prefix = name.to_owned();
        prefix.push(".apppot-new-");
        let is_left = |name: &std::ffi::OsStr| {
            let name = name.as_encoded_bytes();
            name.starts_with(prefix.as_encoded_bytes())
        };
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if is_left(&entry.file_name()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Whether it could not be made a short time ago.
    pub(super) fn has_failed(&self) -> bool {
        let time = fs::metadata(&self.note).and_then(|note| note.modified());
        let recently = time.is_ok_and(|time| age(time) < AGAIN);
        recently && self.text().is_some_and(|text| text == FAILED)
    }

    /// Notes that it is being made: what was noted before is over. The caller has the lock.
    pub(super) fn begin(&self) -> Result<()> {
        self.write("")?;
        self.touch();
        Ok(())
    }

    /// Notes that it could not be made. The caller has the lock.
    pub(super) fn fail(&self) {
        let _ = fs::remove_file(&self.path);
        // The next one fails as well then.
        let _ = self.write(FAILED);
    }

    /// Notes that the image is complete, and opens it. The caller has the lock.
    pub(super) fn keep(&self) -> Result<Image> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot keep '{}'", self.path.display()))?;
        let image = Image::open(&self.path)?;
        let stamp = image.stamp.context("the image is no file")?;
        self.write(&stamp.to_string())?;
        Ok(image)
    }

    fn write(&self, text: &str) -> Result<()> {
        let written = self.open(true).and_then(|mut note| {
            note.set_len(0)?;
            note.write_all(text.as_bytes())
        });
        written.with_context(|| format!("cannot write '{}'", self.note.display()))
    }

    /// Removes it unless somebody is making it, or a machine has it.
    fn remove(&self) -> bool {
        let Some(_lock) = self.lock_or_none() else {
            return false;
        };
        let mut options = note_options();
        let Ok(image) = options.write(true).open(&self.path) else {
            return false;
        };
        if flock::take(&image, &self.path, Use::Writing).is_err() {
            return false;
        }
        let removed = fs::remove_file(&self.path).is_ok();
        // Without its image the note says nothing any more.
        let _ = fs::remove_file(&self.note);
        removed
    }
}

/// A link is not followed, and a FIFO not waited for.
fn note_options() -> fs::OpenOptions {
    let mut options = File::options();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    options.read(true).custom_flags(flags);
    options
}

/// Takes the lock of the file that was opened at `path`, if nobody has it.
fn lock(file: io::Result<File>, path: &Path) -> Result<Option<File>> {
    let failed = || format!("cannot lock '{}'", path.display());
    let file = file.with_context(failed)?;
    match flock::take(&file, path, Use::Writing) {
        Ok(()) => {}
        Err(Error::InUse { .. }) => return Ok(None),
        Err(error) => return Err(error).with_context(failed),
    }
    let (locked, named) = (file.metadata(), fs::symlink_metadata(path));
    let same = locked.with_context(failed)?.ino() == named.with_context(failed)?.ino();
    // Somebody has removed it; the next call meets what comes after it, or an error.
    Ok(same.then_some(file))
}

fn age(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

#[cfg(test)]
mod tests;
