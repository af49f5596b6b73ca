//! The images that are kept for machines with large changes: `$XDG_CACHE_HOME/apppot/committed`.
//!
//! Of each there is `NAME`, a note, and, unless the archives have been used once only, `NAME.img`. The
//! note is what whoever makes the image locks; its time is that of the last use; its text is the
//! image's stamp, or says that the image could not be made. An image without its own stamp in its
//! note is half made or somebody else's work, and made again. All of it may be removed at any time.

use std::fs::{self, DirBuilder, File, FileTimes};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{ensure, Context, Result};
use apppot_backends::flock::{self, Use};
use apppot_backends::image::Image;
use apppot_backends::Error;

/// What all images may take, bytes of disk.
const MOST: u64 = 10 << 30;
/// An image that was used so recently may be about to be booted.
const IN_USE: Duration = Duration::from_secs(600);
/// A note without an image, or a file that nobody has finished, is forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);
/// What could not be made is tried again after this.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
const FAILED: &str = "failed";

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

    /// How many images there are, the bytes of disk that they take, and where.
    pub(crate) fn summary(&self) -> (usize, u64, &Path) {
        let images = self.images();
        let sum = images.iter().map(|(_, blocks, _)| blocks).sum();
        (images.len(), sum, &self.directory)
    }

    /// Makes room for an image of `needed` bytes: forgets what has not been used for longest.
    ///
    /// # Errors
    /// It would take too much of the disk.
    pub(super) fn make_room(&self, needed: u64) -> Result<()> {
        ensure!(needed <= MOST, "it would take {} MiB", needed >> 20);
        self.sweep();
        self.shrink(MOST - needed);
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
        let images = self.images();
        let mut sum: u64 = images.iter().map(|(_, blocks, _)| blocks).sum();
        for (used, blocks, entry) in images {
            if sum <= most {
                return;
            }
            if age(used) > IN_USE && entry.remove() {
                sum -= blocks;
            }
        }
    }

    /// Forgets notes of what was used once, and files that a killed process has left.
    fn sweep(&self) {
        for path in self.paths() {
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let old = metadata.modified().is_ok_and(|time| age(time) > FORGOTTEN);
            let is_image = path.extension().is_some_and(|ending| ending == "img");
            let has_image = path.with_extension("img").exists();
            if old && !is_image && !has_image {
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
        entries.flatten().map(|entry| entry.path())
    }
}

impl Entry {
    /// The image, if it is the one that was made.
    pub(super) fn image(&self) -> Option<Image> {
        let noted = self.text()?;
        let image = Image::open(&self.path).ok()?;
        (image.stamp?.to_string() == noted).then_some(image)
    }

    fn text(&self) -> Option<String> {
        let mut text = String::new();
        let note = File::open(&self.note).ok()?;
        note.take(256).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Notes that it is used now.
    pub(super) fn touch(&self) {
        let now = FileTimes::new().set_modified(SystemTime::now());
        // What cannot be noted is forgotten too early.
        let _ = File::options()
            .write(true)
            .open(&self.note)
            .and_then(|note| note.set_times(now));
    }

    /// Whether nobody has asked for it before; from now on somebody has.
    pub(super) fn is_first_use(&self) -> Result<bool> {
        match File::options()
            .write(true)
            .create_new(true)
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
        let failed = || format!("cannot lock '{}'", self.note.display());
        let note = File::options().read(true).write(true).open(&self.note);
        let note = note.with_context(failed)?;
        match flock::take(&note, &self.note, Use::Writing) {
            Ok(()) => {}
            Err(Error::InUse { .. }) => return Ok(None),
            Err(error) => return Err(error).with_context(failed),
        }
        let (locked, named) = (note.metadata(), fs::metadata(&self.note));
        let same = locked.with_context(failed)?.ino() == named.with_context(failed)?.ino();
        // Somebody has removed it; the next call meets what comes after it, or an error.
        Ok(same.then_some(note))
    }

    /// Whether it could not be made a short time ago.
    pub(super) fn has_failed(&self) -> bool {
        let time = fs::metadata(&self.note).and_then(|note| note.modified());
        let recently = time.is_ok_and(|time| age(time) < AGAIN);
        recently && self.text().is_some_and(|text| text == FAILED)
    }

    /// Notes that it could not be made. The caller has the lock.
    pub(super) fn fail(&self) {
        let _ = fs::remove_file(&self.path);
        // The next one fails as well then.
        let _ = self.write(FAILED);
    }

    /// Notes that the image is complete, and opens it. The caller has the lock.
    pub(super) fn keep(&self) -> Result<Image> {
        let image = Image::open(&self.path)?;
        let stamp = image.stamp.context("the image is no file")?;
        self.write(&stamp.to_string())?;
        Ok(image)
    }

    fn write(&self, text: &str) -> Result<()> {
        let note = File::options().write(true).truncate(true).open(&self.note);
        let written = note.and_then(|mut note| note.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write '{}'", self.note.display()))
    }

    /// Removes it unless somebody is making it.
    fn remove(&self) -> bool {
        let _lock = match self.lock() {
            Ok(Some(note)) => Some(note),
            // An image alone.
            Err(_) if !self.note.exists() => None,
            _ => return false,
        };
        let removed = fs::remove_file(&self.path).is_ok();
        // Without its image the note says nothing any more.
        let _ = fs::remove_file(&self.note);
        removed
    }
}

fn age(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(30 * 24 * 3600);

    fn kept() -> (tempfile::TempDir, Kept) {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().to_owned();
        (place, Kept { directory })
    }

    fn set_age(path: &Path, age: Duration) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    /// An image of 1 MiB that was used so long ago.
    fn image(kept: &Kept, name: &str, used: Duration) -> Entry {
        let entry = kept.entry(name);
        assert!(entry.is_first_use().unwrap());
        let mut bytes = vec![1; 1 << 20];
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        fs::write(&entry.path, bytes).unwrap();
        set_age(&entry.path, used);
        set_age(&entry.note, used);
        entry
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let (_place, kept) = kept();
        let (two, three, one) = (
            image(&kept, "two", OLD),
            image(&kept, "three", 2 * IN_USE),
            image(&kept, "one", 2 * OLD),
        );
        let now = image(&kept, "now", Duration::ZERO);
        assert_eq!(kept.summary().0, 4);
        kept.shrink(5 << 20);
        assert!(one.path.exists());
        kept.shrink(7 << 19);
        assert!(!one.path.exists() && !one.note.exists() && two.path.exists());
        let making = two.lock().unwrap().unwrap();
        kept.shrink(5 << 19);
        assert!(two.path.exists() && !three.path.exists());
        drop(making);
        kept.shrink(0);
        assert!(!two.path.exists() && now.path.exists());
    }

    #[test]
    fn notes_and_what_was_left_are_swept_after_a_while() {
        let (_place, kept) = kept();
        let used = image(&kept, "used", OLD);
        let left = kept.directory.join("x.img.apppot-new-1");
        for path in [&kept.entry("once").note, &kept.entry("new").note, &left] {
            fs::write(path, "").unwrap();
            set_age(path, OLD);
        }
        kept.entry("new").touch();
        kept.make_room(1 << 20).unwrap();
        assert!(!left.exists() && !kept.entry("once").note.exists());
        assert!(used.path.exists() && used.note.exists());
        assert!(kept.entry("new").note.exists());
        assert!(kept.make_room(MOST + 1).is_err());
    }

    #[test]
    fn an_image_is_used_when_it_is_the_one_that_was_made() {
        let (_place, kept) = kept();
        let entry = image(&kept, "x", Duration::ZERO);
        assert!(!entry.is_first_use().unwrap());
        assert!(entry.image().is_none());
        let lock = entry.lock().unwrap().unwrap();
        assert!(entry.lock().unwrap().is_none());
        let kept = entry.keep().unwrap();
        drop(lock);
        assert_eq!(entry.image().unwrap().stamp, kept.stamp);
        entry.touch();
        assert!(entry.image().is_some());
        std::thread::sleep(Duration::from_millis(20));
        set_age(&entry.path, OLD);
        assert!(entry.image().is_none());
    }

    #[test]
    fn what_failed_is_tried_again_on_another_day() {
        let (_place, kept) = kept();
        let entry = image(&kept, "x", Duration::ZERO);
        assert!(!entry.has_failed());
        entry.fail();
        assert!(entry.has_failed() && entry.image().is_none() && !entry.path.exists());
        set_age(&entry.note, 2 * AGAIN);
        assert!(!entry.has_failed());
    }
}
