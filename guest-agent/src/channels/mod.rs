//! The guest's half of the channels that are not live: the job's files come before the job, and what
//! it changed goes back after it (`docs/contract.md`, "The job's files").

mod disk;
mod link;

use std::fs;
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apppot_contract::link::Frame;
use apppot_contract::{Channel, Contract, Files, Writes};
use apppot_snapshot::transfer::{
    list, pack, unpack, Cargo, Limits, Listing, Options, Patterns, Reader, Told, Unpacked, FILES,
    RESULTS,
};
use nix::mount::{mount, umount, MsFlags};
use nix::time::{clock_gettime, ClockId};

use crate::failure::{Failure, Step};
use crate::link::Link;

/// Where the files are in an image that keeps what is written to it.
const ON_IMAGE: &str = "/var/lib/apppot/files";
/// Bytes read from or written to a disk at once.
const CHUNK: usize = 256 << 10;
/// Bytes written to a disk after which the launcher is told that there is progress.
const SIGN_OF_LIFE: u64 = 64 << 20;
/// Files that are named in warnings; the rest is a number.
const NAMED: usize = 10;

/// The job's files, in their place.
pub(crate) struct JobFiles {
    files: Files,
    patterns: Patterns,
    /// The image's directory behind the target, to be removed at the end.
    on_image: Option<PathBuf>,
    before: Listing,
}

/// Puts the job's files into their place, when they travel.
pub(crate) fn receive(contract: &Contract, link: &mut Link) -> Result<Option<JobFiles>, Failure> {
    let Some(files) = &contract.files else {
        return Ok(None);
    };
    let step = "receiving the job's files";
    let owner = contract
        .user
        .as_ref()
        .map_or((0, 0), |user| (user.uid, user.gid));
    let patterns = Patterns::new(&files.results).step(step)?;
    let keeps = contract
        .root
        .as_ref()
        .is_some_and(|root| root.writes == Writes::Device);
    let on_image = make_room(&files.target, owner, keeps).step(format!(
        "making room for the job's files in {}",
        files.target.display()
    ))?;
    let stream: Box<dyn Read> = match files.channel {
        Channel::Disk => Box::new(BufReader::with_capacity(
            CHUNK,
            disk::find(FILES, false).step(step)?,
        )),
        _ => Box::new(link::Incoming::new(link, files.ring.as_deref()).step(step)?),
    };
    let options = Options {
        // The launcher is trusted, and has looked whether there is room.
        limits: Limits {
            bytes: u64::MAX,
            entries: u64::MAX,
        },
        owner: Some(owner),
        sent: None,
        patterns: &Patterns::default(),
        delete: false,
        rest: None,
        told: &mut |_| {},
    };
    let mut reader = Reader::new(stream);
    unpack(
        &files.target,
        &mut reader,
        options,
        &mut Unpacked::default(),
    )
    .map_err(|error| Failure::new(step, error.in_full()))?;
    Ok(Some(JobFiles {
        files: files.clone(),
        patterns,
        on_image,
        before: Listing::default(),
    }))
}

/// Gives the job a directory of its own at `target`: in memory, or on an image that keeps what is
/// written to it, since files need not fit into memory then. Returns where it is on the image.
fn make_room(target: &Path, owner: (u32, u32), keeps: bool) -> io::Result<Option<PathBuf>> {
    fs::create_dir_all(target)?;
    let none: Option<&str> = None;
    let place = match keeps {
        false => {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let options = Some("mode=0755,size=100%,nr_inodes=0");
            mount(Some("apppot"), target, Some("tmpfs"), flags, options)?;
            None
        }
        true => {
            // What a machine that was killed has left.
            match fs::remove_dir_all(ON_IMAGE) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir_all(ON_IMAGE)?,
            }
            mount(Some(ON_IMAGE), target, none, MsFlags::MS_BIND, none)?;
            Some(PathBuf::from(ON_IMAGE))
        }
    };
    match chown(target, Some(owner.0), Some(owner.1)) {
        // A root that is a directory of the host's: everything belongs to the caller.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(place),
    }
}

impl JobFiles {
    /// Remembers what is there before the job begins.
    pub(crate) fn remember(&mut self) -> Result<(), Failure> {
        let listed = list(&self.files.target, false);
        self.before =
            listed.map_err(|error| Failure::new("looking at the job's files", error.in_full()))?;
        // Times of change are as fine as the clock's ticks: what the job changes gets another.
        let tick = || clock_gettime(ClockId::CLOCK_REALTIME_COARSE).ok();
        let (first, patience) = (tick(), Instant::now() + Duration::from_millis(50));
        while tick() == first && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sends what the job has changed.
    pub(crate) fn send_back(self, link: &mut Link) -> Result<(), Failure> {
        let step = "sending the job's results";
        let failed = |error: apppot_snapshot::Error| Failure::new(step, error.in_full());
        let target = &self.files.target;
        // There is something to wait for.
        link.send(&Frame::Files(b"")).step(step)?;
        let after = list(target, false).map_err(failed)?;
        let changes = after.changes(&self.before, &self.patterns);
        let mut warnings: Vec<String> = Vec::new();
        let mut warn = |text: Option<String>| warnings.extend(text);
        let cargo = Cargo::Results(&changes.deleted);
        match self.files.channel {
            Channel::Disk => {
                let disk = disk::find(RESULTS, true).step(step)?;
                let mut stream = BufWriter::with_capacity(CHUNK, disk);
                let mut silent = 0;
                let mut told = |told: Told| match told {
                    Told::Bytes(bytes) => {
                        silent += bytes;
                        if silent >= SIGN_OF_LIFE {
                            silent = 0;
                            let _ = link.send(&Frame::Files(b""));
                        }
                    }
                    told => warn(told.warning()),
                };
                pack(target, cargo, &changes.items, &mut stream, &mut told).map_err(failed)?;
                let disk = stream.into_inner().map_err(|error| error.into_error());
                disk.and_then(|disk| disk.sync_all()).step(step)?;
            }
            _ => {
                let mut stream = link::Outgoing::new(link);
                let mut told = |told: Told| warn(told.warning());
                pack(target, cargo, &changes.items, &mut stream, &mut told).map_err(failed)?;
            }
        }
        for (path, reason) in &after.skipped {
            let path = String::from_utf8_lossy(path);
            warnings.push(format!("'{path}' does not come back: {reason}"));
        }
        say(link, &warnings);
        self.clean_up();
        Ok(())
    }

    /// Leaves nothing on an image that keeps what is written to it.
    fn clean_up(self) {
        if let Some(place) = self.on_image {
            let _ = umount(&self.files.target);
            let _ = fs::remove_dir_all(place);
        }
    }
}

fn say(link: &mut Link, warnings: &[String]) {
    for warning in warnings.iter().take(NAMED) {
        let _ = link.send(&Frame::Log(warning.as_bytes()));
    }
    if let Some(more) = warnings.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let text = format!("{more} more files did not come back, or changed meanwhile");
        let _ = link.send(&Frame::Log(text.as_bytes()));
    }
}
