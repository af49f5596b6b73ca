//! Machines that would merge large archives boot an image into which these were committed once
//! ([`kept`](super::kept)), and then lose no time with them.
//!
//! The first use of archives with an image merges at boot, as for small ones: in a write-test cycle
//! every archive is used once. The second use makes the image; what else starts meanwhile waits for it.
//! Whatever is in the way of that, the guest merges, and says what is wrong with an archive.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use apppot_backends::image::Image;
use apppot_snapshot::hex;

use super::images;
use super::kept::{Entry, Kept};
use super::Examined;
use crate::failure::say;

/// Longest that an image may take to be made.
const MAKING: Duration = Duration::from_secs(600);
/// Longest that is waited for another that makes it.
const WAITING: Duration = Duration::from_secs(60);
/// A change within a tick of the filesystem's clock would not show in a stamp.
const SETTLED: Duration = Duration::from_secs(2);

/// An image with archives, and how a machine that merges them is to be.
pub(crate) struct Wanted<'a> {
    pub(crate) image: &'a Image,
    pub(crate) archives: &'a [Examined],
    /// The configuration of that machine, as variables.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// When the job is to be over.
    pub(crate) deadline: Option<Instant>,
    /// Whether an image is made, or one that is there used at most.
    pub(crate) makes: bool,
    /// Whether it is said what is done.
    pub(crate) verbose: bool,
}

impl Wanted<'_> {
    /// The image with the archives in it, if that is the way to boot it.
    pub(crate) fn get(&self) -> Option<Image> {
        if !is_large(self.archives) || !images::is_quick(self.image) {
            return None;
        }
        match self.find_or_make(&Kept::find()?) {
            Ok(image) => image,
            Err(error) => {
                self.tell(&format!(
                    "the large changes are merged at boot, not kept: {error:#}"
                ));
                None
            }
        }
    }

    fn tell(&self, what: &str) {
        if self.verbose {
            say(&format!("apppot: {what}"));
        }
    }

    fn find_or_make(&self, kept: &Kept) -> Result<Option<Image>> {
        if self.makes {
            kept.create()?;
        }
        let Some(entry) = self.name(kept).map(|name| kept.entry(&name)) else {
            return Ok(None);
        };
        if let Some(image) = entry.image() {
            entry.touch();
            return Ok(Some(image));
        }
        if !self.makes || entry.is_first_use()? {
            return Ok(None);
        }
        let Some(note) = self.turn(&entry)? else {
            bail!("another job takes long to make an image of them");
        };
        if let Some(image) = entry.image() {
            return Ok(Some(image));
        }
        ensure!(!entry.has_failed(), "this has failed before");
        let image = self.make(kept, &entry)?;
        drop(note);
        Ok(Some(image))
    }

    /// The name of the image: everything that it depends on. None while a file may be changing.
    fn name(&self, kept: &Kept) -> Option<String> {
        let image = self.image.stamp?;
        let archives = self.archives.iter().map(|archive| archive.changes.stamp);
        let mut stamps = std::iter::once(image).chain(archives);
        if stamps.any(|stamp| stamp.age() < SETTLED) {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        // Nodes that share a home may each have another number for it, and stamps have that in them.
        let words = [
            env!("CARGO_PKG_VERSION").to_owned(),
            kept.device()?.to_string(),
            image.to_string(),
        ];
        for word in words {
            hasher.update(word.as_bytes()).update(b"\0");
        }
        for archive in self.archives {
            hasher.update(&archive.id);
            hasher.update(&[archive.changes.any_base.into()]);
        }
        Some(hex(hasher.finalize().as_bytes())[..32].to_owned())
    }

    /// The lock of whoever makes the image.
    fn turn(&self, entry: &Entry) -> Result<Option<File>> {
        let end = self.until(WAITING);
        if let Some(note) = entry.lock()? {
            return Ok(Some(note));
        }
        self.tell("waiting for another job, which prepares the appliance with its large changes");
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let locked = entry.lock()?;
            if locked.is_some() || Instant::now() >= end {
                return Ok(locked);
            }
        }
    }

    /// The end of what may take `most`, and no more than half of what the job has.
    fn until(&self, most: Duration) -> Instant {
        let now = Instant::now();
        let left = self.deadline.map(|end| end.saturating_duration_since(now));
        now + left.map_or(most, |left| most.min(left / 2))
    }

    fn make(&self, kept: &Kept, entry: &Entry) -> Result<Image> {
        let stored: u64 = self.archives.iter().map(|archive| archive.stored).sum();
        kept.make_room(blocks(&self.image.path)? + stored)?;
        self.tell("preparing the appliance with its large changes, once");
        let started = Instant::now();
        let made = self.commit(&entry.path).and_then(|()| self.unchanged());
        if let Err(error) = made {
            entry.fail();
            return Err(error);
        }
        let image = entry.keep()?;
        self.tell(&format!(
            "prepared in {:.1} s: '{}'",
            started.elapsed().as_secs_f64(),
            entry.path.display()
        ));
        Ok(image)
    }

    /// Fails when what was examined is no longer what is there.
    fn unchanged(&self) -> Result<()> {
        let archives = self.archives.iter().map(|archive| &archive.changes);
        let archives = archives.map(|changes| (&changes.path, changes.stamp));
        let image = self.image.stamp.map(|stamp| (&self.image.path, stamp));
        for (path, stamp) in archives.chain(image) {
            let file =
                File::open(path).with_context(|| format!("cannot open '{}'", path.display()));
            stamp.check(&file?, path)?;
        }
        Ok(())
    }

    /// Makes the image at `path` with a process of its own, which a job's signals and limits end like any
    /// other; its watch removes what is half made.
    fn commit(&self, path: &Path) -> Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--quiet", "snap", "commit", "--base"]);
        command.arg(&self.image.path).arg("-o").arg(path);
        for archive in self.archives {
            command.arg("--changes").arg(&archive.changes.path);
        }
        if self.archives.iter().any(|archive| archive.changes.any_base) {
            command.arg("--changes-any-base");
        }
        let environment = self.environment.iter();
        command.envs(environment.map(|(name, value)| (name, value)));
        let errors = match self.verbose {
            true => Stdio::inherit(),
            false => Stdio::null(),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let launcher = std::process::id();
        // SAFETY: async-signal-safe calls that take no pointers.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The launcher may have died before the line above.
                match libc::getppid() as u32 == launcher {
                    true => Ok(()),
                    false => libc::_exit(127),
                }
            });
        }
        wait(command, self.until(MAKING))
    }
}

/// Whether merging them takes long: some half a second for so many files or so many bytes.
fn is_large(archives: &[Examined]) -> bool {
    let records: usize = archives.iter().map(|archive| archive.records).sum();
    let stored: u64 = archives.iter().map(|archive| archive.stored).sum();
    records >= 2000 || stored >= 64 << 20
}

/// Runs a command, and kills it at `end`.
fn wait(mut command: Command, end: Instant) -> Result<()> {
    let mut child = command.spawn().context("cannot start the commit")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            bail!("it took too long");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    ensure!(status.success(), "'apppot snap commit': {status}");
    Ok(())
}

/// What a file takes of its disk, bytes.
fn blocks(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path);
    let metadata = metadata.with_context(|| format!("cannot examine '{}'", path.display()))?;
    Ok(metadata.blocks() * 512)
}
