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
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use apppot_backends::flock::{self, Use};
use apppot_backends::image::Image;
use apppot_snapshot::hex;
use apppot_snapshot::merge::mark;
use apppot_snapshot::rules::Rules;

use super::images;
use super::kept::{Entry, Kept};
use super::Examined;
use crate::failure::say;
use crate::progress::PATIENCE;
use crate::run::AGENT;
use crate::trust;

/// Longest that an image may take to be made.
const MAKING: Duration = Duration::from_secs(600);
/// Longest that is waited for another that makes it.
const WAITING: Duration = Duration::from_secs(60);
/// An image of so many bytes is copied for any large changes, a larger one for a sixteenth of its size at least.
const CHEAP: u64 = 2 << 30;
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
    /// Whether nothing is said, however long it takes.
    pub(crate) quiet: bool,
}

impl Wanted<'_> {
    /// The image with the archives in it, if that is the way to boot it.
    pub(crate) fn get(&self) -> Option<Image> {
        if !is_large(self.archives) || !images::is_quick(self.image) || !self.is_the_same() {
            return None;
        }
        match self.find_or_make(&mut Kept::find()?) {
            Ok(image) => image,
            Err(error) => {
                self.tell(&format!(
                    "the large changes are merged at boot, not kept: {error:#}"
                ));
                None
            }
        }
    }

    /// Whether a merge at boot makes the same as a commit, and what was made once is known again.
    fn is_the_same(&self) -> bool {
        // An image that is written into remembers its archives, and is not given them twice; one that may be
        // any may have them already.
        let twice = |(index, archive): (usize, &Examined)| {
            let before = &self.archives[..index];
            before.iter().any(|other| other.id == archive.id)
        };
        let paths = self.archives.iter().map(|archive| &archive.changes.path);
        let mut paths = paths.chain(std::iter::once(&self.image.path));
        !self.archives.iter().any(|archive| archive.changes.any_base)
            && !self.archives.iter().enumerate().any(twice)
            && paths.all(|path| trust::has_true_stamp(path))
    }

    fn tell(&self, what: &str) {
        if self.verbose {
            say(&format!("apppot: {what}"));
        }
    }

    fn find_or_make(&self, kept: &mut Kept) -> Result<Option<Image>> {
        if self.makes {
            kept.create()?;
        }
        if self.makes || kept.device().is_some() {
            kept.check()?;
        }
        let Some(entry) = self.name(kept).map(|name| kept.entry(&name)) else {
            return Ok(None);
        };
        if let Some(image) = entry.image() {
            entry.touch();
            return Ok(Some(image));
        }
        if !self.makes {
            return Ok(None);
        }
        if entry.is_first_use()? {
            kept.sweep();
            return Ok(None);
        }
        let slow = "another job takes long to make an image";
        let end = self.until(WAITING);
        let _note = self.turn(end, || entry.lock())?.context(slow)?;
        if let Some(image) = entry.image() {
            return Ok(Some(image));
        }
        ensure!(!entry.has_failed(), "this has failed before");
        // Nobody forgets it now.
        entry.begin()?;
        let _all = self.turn(end, || kept.lock())?.context(slow)?;
        self.make(kept, &entry).map(Some)
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
        // It is what makes the image, and differs between builds.
        hasher.update(blake3::hash(AGENT).as_bytes());
        for archive in self.archives {
            hasher.update(&archive.id);
        }
        Some(hex(hasher.finalize().as_bytes())[..32].to_owned())
    }

    /// A lock that another job may have for a while.
    fn turn(&self, end: Instant, lock: impl Fn() -> Result<Option<File>>) -> Result<Option<File>> {
        if let Some(file) = lock()? {
            return Ok(Some(file));
        }
        self.tell("waiting for another job, which prepares an appliance with large changes");
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let locked = lock()?;
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
        let blocks = blocks(&self.image.path)?;
        ensure!(
            blocks <= CHEAP.max(stored.saturating_mul(16)),
            "the image takes {} MiB, too much to be copied for them",
            blocks >> 20
        );
        entry.clean();
        kept.make_room(blocks + stored)?;
        self.tell("preparing the appliance with its large changes, once");
        let started = Instant::now();
        // Nobody writes into it meanwhile, so that the commit does not fail by that.
        let path = &self.image.path;
        let base = File::open(path).with_context(|| format!("cannot open '{}'", path.display()))?;
        flock::take(&base, path, Use::Reading)?;
        if self.is_marked()? {
            entry.fail();
            bail!("the image has one of them already, and a commit would leave it out");
        }
        let status = self.commit(&entry.path)?;
        if !status.success() {
            // What a signal ended may well be made another time.
            if status.code().is_some_and(|code| code < 128) {
                entry.fail();
            }
            bail!("'apppot snap commit': {status}");
        }
        self.unchanged()?;
        let image = entry.keep()?;
        self.tell(&format!(
            "prepared in {:.1} s: '{}'",
            started.elapsed().as_secs_f64(),
            entry.path.display()
        ));
        Ok(image)
    }

    /// Whether the image remembers that one of the archives was merged into it.
    fn is_marked(&self) -> Result<bool> {
        let appliance = images::Appliance::open(&self.image.path, None)?;
        let listing = appliance.tree.walk(&Rules::of_nobody())?;
        let marks: Vec<_> = self.archives.iter().map(|it| mark(&it.id)).collect();
        let mut paths = listing.found.iter().map(|found| &found.entry.path);
        Ok(paths.any(|path| marks.contains(path)))
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
    fn commit(&self, path: &Path) -> Result<ExitStatus> {
        let option = |name: &str, path: &Path| {
            let mut option = OsString::from(name);
            option.push(path);
            option
        };
        let mut command = Command::new("/proc/self/exe");
        // In the place of what is not the image that was made.
        command.args(["--quiet", "snap", "commit", "--force"]);
        command.arg(option("--base=", &self.image.path));
        command.arg(option("--output=", path));
        for archive in self.archives {
            command.arg(option("--changes=", &archive.changes.path));
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
            .stderr(errors)
            // The job's signals are not for it; it ends with the launcher.
            .process_group(0);
        let launcher = std::process::id();
        // SAFETY: async-signal-safe calls that take no pointers.
        unsafe {
            command.pre_exec(move || {
                libc::umask(0o077);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The launcher may have died before the line above.
                match libc::getppid() as u32 == launcher {
                    true => Ok(()),
                    false => libc::_exit(127),
                }
            });
        }
        self.wait(command, self.until(MAKING))
    }

    /// Runs a command, and kills it at `end`.
    fn wait(&self, mut command: Command, end: Instant) -> Result<ExitStatus> {
        let mut patience = Some(Instant::now() + PATIENCE).filter(|_| !self.quiet && !self.verbose);
        let mut child = command.spawn().context("cannot start the commit")?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            let now = Instant::now();
            if now >= end {
                child.kill()?;
                child.wait()?;
                bail!("it took too long");
            }
            if patience.take_if(|patience| now >= *patience).is_some() {
                say("apppot: preparing the appliance with its large changes, once");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether merging them takes long: some half a second for so many files or so many bytes.
fn is_large(archives: &[Examined]) -> bool {
    let records: usize = archives.iter().map(|archive| archive.records).sum();
    let stored: u64 = archives.iter().map(|archive| archive.stored).sum();
    records >= 2000 || stored >= 64 << 20
}

/// What a file takes of its disk, bytes.
fn blocks(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path);
    let metadata = metadata.with_context(|| format!("cannot examine '{}'", path.display()))?;
    Ok(metadata.blocks() * 512)
}
