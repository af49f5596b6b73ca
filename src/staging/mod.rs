//! The host's half of the channels that are not live: what of the job directory goes to the guest, and
//! what comes back (`docs/contract.md`, "The job's files").

mod disk;
mod received;

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use apppot_backends::spec::{Disk, MachineSpec, Writes};
use apppot_backends::Capabilities;
use apppot_contract::{Channel, Files};
use apppot_snapshot::transfer::{
    list, pack, unpack, Cargo, Item, Limits, Listing, Notice, Options, Patterns, Reader, Told,
    Unpacked,
};

use self::disk::Disks;
pub(crate) use self::disk::ROOM;
pub(crate) use self::received::Received;
use crate::caller::JobDirectory;
use crate::failure::{hinted, warn};
use crate::files::lacks_space;
use crate::progress::Progress;
use crate::units::Size;

/// Files that are named in warnings; the rest is a number.
const NAMED: usize = 10;
/// Part of the guest's memory that files may fill: the kernel and the job need some, too.
const FILES_SHARE: u64 = 8;

/// What the user wants of the job's files.
#[derive(Debug, Clone)]
pub(crate) struct Wishes {
    /// The channel, when the user has chosen one.
    pub(crate) channel: Option<Channel>,
    /// What goes to the guest: patterns.
    pub(crate) input: Vec<String>,
    /// What comes back: patterns.
    pub(crate) output: Vec<String>,
    /// The most that comes back.
    pub(crate) limits: Limits,
    /// Whether what the job deleted is deleted here.
    pub(crate) sync_deletes: bool,
    /// Whether warnings and progress are shown.
    pub(crate) shown: bool,
}

/// The job directory, as it travels.
#[derive(Debug)]
pub(crate) struct Staging {
    root: PathBuf,
    id: String,
    wishes: Wishes,
    output: Patterns,
    /// What goes to the guest, as it was when it was looked at.
    sent: Listing,
    disks: Option<Disks>,
}

/// The channel of a job: as the user wants it, else the backend's best.
fn choose(wishes: &Wishes, can: &Capabilities) -> Option<Channel> {
    wishes.channel.or_else(|| can.channels.first().copied())
}

impl Staging {
    /// Takes the job directory from the shares of `spec` when its files are to travel; `None` when it
    /// is shared.
    ///
    /// # Errors
    /// It cannot be read, or does not fit.
    pub(crate) fn plan(
        spec: &mut MachineSpec,
        jobdir: &JobDirectory,
        can: &Capabilities,
        wishes: Wishes,
        starts: bool,
    ) -> Result<Option<Self>> {
        if let Some(channel) = wishes
            .channel
            .filter(|channel| !can.channels.contains(channel))
        {
            let words: Vec<&str> = can.channels.iter().map(|channel| channel.word()).collect();
            return Err(hinted(
                format!("this backend has no channel '{}'", channel.word()),
                format!("it has {}", words.join(", ")),
            ));
        }
        let channel = match choose(&wishes, can) {
            Some(channel) if !channel.is_live() => channel,
            live => {
                refuse_without_travel(&wishes)?;
                spec.live = wishes.channel.and(live);
                return Ok(None);
            }
        };
        let Some(at) = spec
            .shares
            .iter()
            .position(|share| share.host == jobdir.real)
        else {
            return Ok(None);
        };
        let share = spec.shares.remove(at);
        spec.contract.files = Some(Files {
            channel,
            target: share.guest,
            ring: None,
            results: wishes.output.clone(),
        });
        let mut staging = Self::gather(share.host, &spec.contract.id, wishes)?;
        staging.check_fit(spec)?;
        if channel == Channel::Disk {
            staging.add_disks(spec, starts)?;
        }
        Ok(Some(staging))
    }

    /// What of the directory `root` travels, as it is now.
    ///
    /// # Errors
    /// It cannot be read, or a pattern is none.
    pub(crate) fn gather(root: PathBuf, id: &str, wishes: Wishes) -> Result<Self> {
        let read = |patterns: &[String], option: &str| {
            Patterns::new(patterns).with_context(|| format!("{option} cannot be used"))
        };
        let input = read(&wishes.input, "--input")?;
        let output = read(&wishes.output, "--output")?;
        let listing = list(&root, true)
            .with_context(|| format!("cannot read the job directory '{}'", root.display()))?;
        let mut idle = Vec::new();
        for pattern in wishes.input.iter().filter(|one| !one.starts_with('!')) {
            if !listing.has_any(&read(std::slice::from_ref(pattern), "--input")?) {
                idle.push(format!("nothing here matches --input '{pattern}'"));
            }
        }
        let staging = Staging {
            root,
            id: id.to_owned(),
            output,
            sent: listing.narrowed(&input),
            wishes,
            disks: None,
        };
        staging.warn_all(idle);
        Ok(staging)
    }

    /// For results alone, of a job whose files nobody here knows: what is in `root` and differs is kept beside.
    pub(crate) fn results_only(root: PathBuf, id: &str, wishes: Wishes) -> Result<Self> {
        Ok(Staging {
            root,
            id: id.to_owned(),
            output: Patterns::new(&wishes.output).context("--output cannot be used")?,
            sent: Listing::default(),
            wishes,
            disks: None,
        })
    }

    /// Files must fit where the guest keeps them, when that is its memory.
    fn check_fit(&self, spec: &MachineSpec) -> Result<()> {
        let (entries, bytes) = Listing::totals(&self.sent.items);
        let most = spec.memory - spec.memory / FILES_SHARE;
        // A page each at least, in memory, and an inode.
        let needed = bytes.saturating_add(entries.saturating_mul(1024));
        if spec.writes != Writes::Memory || needed <= most {
            return Ok(());
        }
        let (has, memory) = (Size(bytes >> 20 << 20), Size(spec.memory));
        Err(hinted(
            format!(
                "the job directory '{}' ({has} in {entries} files) does not fit into the guest's memory ({memory})",
                self.root.display()
            ),
            "limit what is sent with --input, give more --memory, or keep it on a disk with --overlay FILE",
        ))
    }

    fn add_disks(&mut self, spec: &mut MachineSpec, starts: bool) -> Result<()> {
        let mut disk = |what, file: Option<&std::sync::Arc<File>>, writable| {
            spec.disks.push(Disk {
                what,
                file: file.cloned(),
                writable,
            });
        };
        const INPUT: &str = "the job's files (tar)";
        const RESULTS: &str = "results (tar)";
        const UNWRITTEN: &str = "cannot write the job's files to their disk";
        if !starts {
            disk(INPUT, None, false);
            disk(RESULTS, None, true);
            return Ok(());
        }
        let disks = Disks::make(self.wishes.limits.bytes)?;
        let mut out = BufWriter::with_capacity(1 << 20, &*disks.input);
        let written = self.send(&mut out).and_then(|()| Ok(out.flush()?));
        drop(out);
        let written = written.and_then(|()| disks.finish_input());
        written.map_err(|error| match lacks_space(&disks.directory) {
            true => hinted(format!("{error:#}"), ROOM).context(UNWRITTEN),
            false => error.context(UNWRITTEN),
        })?;
        disk(INPUT, Some(&disks.input), false);
        disk(RESULTS, Some(&disks.results), true);
        self.disks = Some(disks);
        Ok(())
    }

    /// The directory of the disks, when there is no room left for what the guest writes to them.
    pub(crate) fn full_directory(&self) -> Option<&Path> {
        let disks = self.disks.as_ref()?;
        Some(&*disks.directory).filter(|directory| lacks_space(directory))
    }

    /// Whether the streams are on the link.
    pub(crate) fn uses_link(&self) -> bool {
        self.disks.is_none()
    }

    /// The disk that the guest writes results to, read from its start.
    pub(crate) fn results_disk(&self) -> Option<impl Read + Send> {
        self.disks.as_ref().and_then(Disks::read_results)
    }

    /// Writes the stream of the job's files.
    ///
    /// # Errors
    /// A file cannot be read to its end, or the stream not written. It has been said.
    pub(crate) fn send(&self, out: &mut dyn Write) -> Result<()> {
        let items: Vec<&Item> = self.sent.items.iter().collect();
        let total = Listing::totals(&self.sent.items).1;
        let mut progress = Progress::start("sending the job's files", total, self.wishes.shown);
        let mut warnings: Vec<String> = Vec::new();
        let mut told = |told: Told| match &told {
            Told::Bytes(bytes) => progress.add(*bytes),
            _ => warnings.extend(told.warning()),
        };
        let packed = pack(&self.root, Cargo::Files, &items, out, &mut told);
        progress.end();
        let skipped = self.sent.skipped.iter().map(|(path, reason)| {
            let path = String::from_utf8_lossy(path);
            format!("'{path}' is not sent: {reason}")
        });
        self.warn_all(warnings.into_iter().chain(skipped).collect());
        packed.with_context(|| format!("cannot send the job directory '{}'", self.root.display()))
    }

    fn warn_all(&self, warnings: Vec<String>) {
        if !self.wishes.shown {
            return;
        }
        warnings.iter().take(NAMED).for_each(|text| warn(text));
        if let Some(more) = warnings.len().checked_sub(NAMED).filter(|more| *more > 0) {
            warn(&format!("and {more} more"));
        }
    }

    /// Puts results into the job directory.
    /// Returns when the stream has ended, or results cannot be put back.
    pub(crate) fn receive(&self, stream: impl Read) -> Received {
        let mut done = Unpacked::default();
        let mut progress = Progress::start("putting results back", 0, self.wishes.shown);
        let mut warnings: Vec<String> = Vec::new();
        let mut rest = || disk::rest(&self.root, &self.id);
        let options = Options {
            limits: self.wishes.limits,
            owner: None,
            sent: Some(&self.sent),
            patterns: &self.output,
            delete: self.wishes.sync_deletes,
            rest: Some(&mut rest),
            told: &mut |notice| match notice {
                Notice::Start(_, bytes) => progress.of(bytes),
                Notice::Bytes(bytes) => progress.add(bytes),
                Notice::Kept(path, kept) => warnings.push(format!(
                    "'{}' was changed here while the job changed it: what was here is '{}' now",
                    path.display(),
                    kept.display()
                )),
                Notice::NotDeleted(path) => warnings.push(format!(
                    "'{}' was changed here while the job deleted it: it stays",
                    path.display()
                )),
            },
        };
        let mut reader = Reader::new(stream);
        let result = unpack(&self.root, &mut reader, options, &mut done);
        if result.is_ok() && self.uses_link() {
            // Whoever sees this end takes it for a failure, as long as there may be more.
            let mut rest = reader.into_inner().take(self.wishes.limits.bytes);
            let _ = std::io::copy(&mut rest, &mut std::io::sink());
        }
        progress.end();
        self.warn_all(warnings);
        Received::new(&self.root, done, result)
    }
}

/// Options that mean nothing where the directory itself is shared.
fn refuse_without_travel(wishes: &Wishes) -> Result<()> {
    let options = [
        ("--input", !wishes.input.is_empty()),
        ("--output", !wishes.output.is_empty()),
        ("--sync-deletes", wishes.sync_deletes),
    ];
    if let Some((option, _)) = options.iter().find(|(_, given)| *given) {
        bail!(hinted(
            format!("{option}: the job directory is shared, so that all of it is seen and changed"),
            "choose a channel by which files travel, such as --channel link",
        ));
    }
    Ok(())
}
