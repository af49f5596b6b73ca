//! An image of layout disk becomes an image of a cloud: its blocks a snapshot, and that registered.
//!
//! Only blocks that are not zero are sent, many at once, each with its checksum. What was sent is
//! noted in a [`Journal`], so that an upload that was stopped goes on. The cloud's image has the
//! SHA-256 of the file as a tag, and is found by it instead of being made twice.

mod journal;
mod survey;

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

pub use journal::Journal;
pub use survey::{length, survey, Block, Survey};

use crate::ec2::NewImage;
use crate::{CloudImage, Config, Ebs, Ec2, Error, Result, BLOCK};

/// The tag that holds the SHA-256 of the file.
pub const TAG: &str = "apppot:sha256";
/// Blocks that are on their way at once.
const AT_ONCE: usize = 16;
/// How long a cloud may take to make a snapshot of its blocks.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// So many blocks are to be sent.
    Left(usize),
    /// A block has arrived.
    Sent,
    /// The cloud is making the snapshot of its blocks.
    Waiting,
}

/// An image on its way into a cloud.
#[derive(Debug)]
pub struct Publisher<'a> {
    ec2: Ec2,
    ebs: Ebs,
    file: &'a File,
    survey: &'a Survey,
}

impl<'a> Publisher<'a> {
    /// Of a file that `survey` describes.
    ///
    /// # Errors
    /// A configured endpoint is no URL.
    pub fn new(config: &Config, file: &'a File, survey: &'a Survey) -> Result<Self> {
        Ok(Publisher {
            ec2: Ec2::new(config)?,
            ebs: Ebs::new(config)?,
            file,
            survey,
        })
    }

    /// The image that the file was published as before.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses.
    pub fn find(&self) -> Result<Option<CloudImage>> {
        let images = self
            .ec2
            .images(&format!("tag:{TAG}"), &self.survey.sha256)?;
        let is_good = |image: &CloudImage| matches!(&image.state[..], "available" | "pending");
        Ok(images.into_iter().find(is_good))
    }

    /// Makes the cloud's image, and goes on with what the journal knows.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses; the file was changed or cannot be read.
    pub fn publish(
        &self,
        name: &str,
        description: &str,
        journal: &mut Journal,
        report: &mut dyn FnMut(Event),
    ) -> Result<CloudImage> {
        let snapshot = match self.go_on(journal, report) {
            // The cloud has given up what was begun.
            Err(error) if is_gone(&error) => None,
            other => other?,
        };
        let snapshot = match snapshot {
            Some(snapshot) => snapshot,
            None => self.begin(description, journal, report)?,
        };
        self.wait(&snapshot, report)?;
        let image = NewImage {
            name,
            description,
            snapshot: &snapshot,
        };
        let id = self.register(&image)?;
        let tags = [(TAG, &self.survey.sha256[..]), ("Name", name)];
        self.ec2.tag(&[&id, &snapshot], &tags)?;
        Ok(CloudImage {
            id,
            name: name.to_owned(),
            state: String::from("available"),
            snapshot: Some(snapshot),
        })
    }

    /// Ends the snapshot of the journal, if there is one that can be gone on with.
    fn go_on(
        &self,
        journal: &mut Journal,
        report: &mut dyn FnMut(Event),
    ) -> Result<Option<String>> {
        let Some(id) = journal.snapshot().map(str::to_owned) else {
            return Ok(None);
        };
        let Some(snapshot) = self.ec2.snapshot(&id)? else {
            return Ok(None);
        };
        let is_all = |journal: &Journal| self.survey.blocks.iter().all(|b| journal.has(b.index));
        match &snapshot.state[..] {
            "completed" if is_all(journal) => Ok(Some(id)),
            "pending" | "completed" => {
                self.send(&id, journal, report)?;
                Ok(Some(id))
            }
            _ => Ok(None),
        }
    }

    /// Begins a snapshot, and ends it.
    fn begin(
        &self,
        description: &str,
        journal: &mut Journal,
        report: &mut dyn FnMut(Event),
    ) -> Result<String> {
        let gib = self.survey.size.div_ceil(1 << 30).max(1);
        let tags = [(TAG, &self.survey.sha256[..])];
        let id = self.ebs.start(gib, description, &tags)?;
        journal.begin(&id)?;
        self.send(&id, journal, report)?;
        Ok(id)
    }

    /// Sends every block that the journal does not know.
    fn send(
        &self,
        snapshot: &str,
        journal: &mut Journal,
        report: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let all = &self.survey.blocks;
        let left: Vec<&Block> = all.iter().filter(|b| !journal.has(b.index)).collect();
        report(Event::Left(left.len()));
        let next = AtomicUsize::new(0);
        let (sender, receiver) = sync_channel(AT_ONCE);
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(left.len()) {
                let sender = sender.clone();
                scope.spawn(|| self.work(snapshot, &left, &next, sender));
            }
            drop(sender);
            let noted = receiver.into_iter().try_for_each(|sent: Result<u32>| {
                journal.note(sent?)?;
                report(Event::Sent);
                Ok(())
            });
            // Whatever the reason for an end, no more blocks are begun.
            next.store(left.len(), Ordering::Relaxed);
            noted
        })?;
        let sums = all.iter().fold(Sha256::new(), |sums, block| {
            sums.chain_update(block.checksum)
        });
        self.ebs
            .complete(snapshot, all.len(), &sums.finalize().into())
    }

    /// Sends blocks until there are none, or one fails.
    fn work(
        &self,
        snapshot: &str,
        left: &[&Block],
        next: &AtomicUsize,
        told: SyncSender<Result<u32>>,
    ) {
        let mut buffer = vec![0; BLOCK as usize];
        while let Some(block) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
            let sent = survey::read_block(self.file, block.index, &mut buffer).and_then(|()| {
                if Sha256::digest(&buffer)[..] != block.checksum {
                    return Err(Error::Changed);
                }
                self.ebs
                    .put(snapshot, block.index, &buffer, &block.checksum)?;
                Ok(block.index)
            });
            let failed = sent.is_err();
            if told.send(sent).is_err() || failed {
                return;
            }
        }
    }

    fn wait(&self, id: &str, report: &mut dyn FnMut(Event)) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let failed = |reason: &str| Error::Snapshot {
            id: id.to_owned(),
            reason: reason.to_owned(),
        };
        let mut pause = Duration::from_secs(1);
        loop {
            let snapshot = self.ec2.snapshot(id)?;
            let snapshot = snapshot.ok_or_else(|| failed("it is gone"))?;
            match &snapshot.state[..] {
                "completed" => return Ok(()),
                "pending" if Instant::now() < end => report(Event::Waiting),
                "pending" => return Err(failed("it is not ready after two hours")),
                state => return Err(failed(&format!("{state} {}", snapshot.message))),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// Registers the image. When the cloud says that there is one of that name, it may be this one, if its
    /// answer was lost.
    fn register(&self, image: &NewImage<'_>) -> Result<String> {
        let error = match self.ec2.register(image) {
            Err(error) if error.code() == Some("InvalidAMIName.Duplicate") => error,
            other => return other,
        };
        let named = self.ec2.images("name", image.name)?;
        let is_ours = |named: &CloudImage| named.snapshot.as_deref() == Some(image.snapshot);
        let ours = named.into_iter().find(is_ours);
        ours.map(|image| image.id).ok_or(error)
    }
}

/// Whether the snapshot that was gone on with cannot be written any more.
fn is_gone(error: &Error) -> bool {
    matches!(
        error.code(),
        Some("ResourceNotFoundException" | "ValidationException" | "ConflictException")
    )
}
