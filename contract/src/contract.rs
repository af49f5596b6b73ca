//! The contract as a value, and its keys.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::store::Store;
use crate::token::{Error, Token, Writer};

pub(crate) use reader::{beside, Read, Reader};

/// The version of the contract that this crate reads and writes.
pub const VERSION: u32 = 1;

/// Everything that the launcher tells the agent at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// `apppot.id`: the machine's name, for messages and for `APPPOT_ID` in the job's environment.
    pub id: String,
    /// `apppot.link`: the guest's device file of the link (such as `/dev/ttyS0`).
    pub link: Option<PathBuf>,
    /// `apppot.root`, `apppot.writes`: the appliance's root filesystem; `None` when the agent runs
    /// inside a system that has mounted it already.
    pub root: Option<Root>,
    /// `apppot.mount`, repeated, in the order of mounting: directories of the host.
    pub mounts: Vec<Mount>,
    /// `apppot.changes`, repeated, in the order of merging: changes archives to merge into the root
    /// before anything else happens to it.
    pub changes: Vec<Changes>,
    /// `apppot.files`, `apppot.files-ring`, `apppot.results`: how the job's files travel where the
    /// job directory is not one of the mounts.
    pub files: Option<Files>,
    /// `apppot.jobdir`: the working directory of the job, as the guest sees it.
    pub jobdir: PathBuf,
    /// `apppot.tmpdir`: what `TMPDIR` is to be in the job; it is made when it is missing.
    pub tmpdir: Option<PathBuf>,
    /// `apppot.user`, `.uid`, `.group`, `.gid`, `.groups`: who runs the job; `None` for root.
    pub user: Option<User>,
    /// `apppot.arg`, repeated, or `apppot.shell`: what runs.
    pub workload: Workload,
    /// `apppot.stdin`: where the job's standard input comes from.
    pub stdin: Stdin,
    /// `apppot.terminal`, `TERM`: the caller's terminal, when the job gets a terminal of its own.
    pub terminal: Option<Terminal>,
    /// `apppot.umask`: the file mode creation mask of the job.
    pub umask: u32,
    /// `apppot.env`, repeated: environment variables added to the clean environment.
    pub env: Vec<(OsString, OsString)>,
    /// `apppot.hostname`: the guest's host name.
    pub hostname: Option<String>,
    /// `apppot.network`: the way out of the guest; `None`: it has only its own loopback.
    pub network: Option<Network>,
    /// `apppot.deadline`: when the job must have ended, in milliseconds since the epoch.
    pub deadline: Option<SystemTime>,
    /// `apppot.grace`: what passes between asking processes to end and ending them, milliseconds.
    pub grace: Duration,
    /// `apppot.boot`: who is PID 1 while the job runs.
    pub boot: Boot,
    /// `apppot.store`, repeated: what takes the link's place where no stream reaches the machine.
    pub store: Store,
}

/// The appliance's root filesystem and what becomes of writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Filesystem type as mount(2) takes it: `ext4`, `squashfs`, `hostfs`, `9p`.
    pub filesystem: String,
    /// Device file (`/dev/ubda1`), or for a shared directory what the filesystem takes as source.
    pub source: OsString,
    /// What becomes of writes.
    pub writes: Writes,
}

/// What becomes of writes to the root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// The filesystem is mounted read-only below an overlay in memory that ends with the machine.
    Memory,
    /// The filesystem is mounted read-write.
    Device,
}

/// How the job's files reach the guest and come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// User-Mode Linux's own filesystem (`Documentation/filesystems/hostfs`).
    Hostfs,
    /// 9P2000.L over virtio (`Documentation/filesystems/9p.rst`).
    NineP,
    /// FUSE over virtio (`Documentation/filesystems/virtiofs.rst`).
    Virtiofs,
    /// A tar stream in `Files` frames on the link: the whole directory in, what changed out.
    Link,
    /// The same stream on two block devices, one in and one out.
    Disk,
}

/// Every channel.
pub const CHANNELS: [Channel; 5] = [
    Channel::Hostfs,
    Channel::NineP,
    Channel::Virtiofs,
    Channel::Link,
    Channel::Disk,
];

/// Files that travel before and after the job, instead of being shared while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// How; none that is [live](Channel::is_live).
    pub channel: Channel,
    /// The directory that they are put into, made when it is missing.
    pub target: PathBuf,
    /// The block device with the ring that they come through, on links that are slow towards the
    /// guest; for [`Channel::Link`] only.
    pub ring: Option<PathBuf>,
    /// Which results travel: patterns as in gitignore(5), all when there are none.
    pub results: Vec<String>,
}

/// A directory of the host, seen in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// How it is reached.
    pub channel: Channel,
    /// What the channel's filesystem takes as source: for hostfs a host path, for the others a tag.
    pub source: OsString,
    /// Where the guest sees it; made when it is missing.
    pub target: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// A changes archive that the guest can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The block device or file that holds it.
    pub source: PathBuf,
    /// Whether it is merged even when it was made for another base.
    pub any_base: bool,
}

/// The user who runs the job, numbered as on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, used when the appliance has no account with this uid and no regular user.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group's name.
    pub group: String,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The appliance's account that the job is to run under, and no other; it gets the numbers.
    pub account: Option<String>,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workload {
    /// A command with its arguments; never empty.
    Command(Vec<OsString>),
    /// The first of `./apppot-run` in the job directory, the image's `/etc/apppot/autorun`, the
    /// user's shell (paper, section 5, step e).
    Default,
    /// The user's shell, whatever else there is.
    Shell,
}

/// Where the job's standard input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    /// `null`: `/dev/null`.
    Null,
    /// `link`: `Stdin` frames on the link.
    Link,
    /// A device file: the bytes are in a ring on this block device, `StdinRing` frames on the link
    /// say how far. For links that are slow towards the guest.
    Ring(PathBuf),
}

/// The caller's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Terminal type, the value of `TERM`.
    pub term: String,
    /// Height in characters.
    pub rows: u16,
    /// Width in characters.
    pub columns: u16,
}

/// The guest's network, which the agent sets up as it is said here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The guest's interface, such as `eth0`.
    pub interface: String,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// The router to everywhere else.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub nameserver: Ipv4Addr,
}

/// Who is PID 1 while the job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The agent.
    Direct,
    /// The image's own init; the agent runs as one of its services.
    System,
}

impl Channel {
    /// The word for it: in a contract, on a command line, in messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Channel::Hostfs => "hostfs",
            Channel::NineP => "9p",
            Channel::Virtiofs => "virtiofs",
            Channel::Link => "link",
            Channel::Disk => "disk",
        }
    }

    /// The channel of that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        CHANNELS.into_iter().find(|channel| channel.word() == word)
    }

    /// Whether the guest sees the host's files themselves, while the job runs.
    #[must_use]
    pub fn is_live(self) -> bool {
        match self {
            Channel::Hostfs | Channel::NineP | Channel::Virtiofs => true,
            Channel::Link | Channel::Disk => false,
        }
    }
}

impl Default for Contract {
    fn default() -> Self {
        Contract {
            id: String::from("apppot"),
            link: None,
            root: None,
            mounts: Vec::new(),
            changes: Vec::new(),
            files: None,
            jobdir: PathBuf::from("/"),
            tmpdir: None,
            user: None,
            workload: Workload::Default,
            stdin: Stdin::Null,
            terminal: None,
            umask: 0o022,
            env: Vec::new(),
            hostname: None,
            network: None,
            deadline: None,
            grace: Duration::from_secs(4),
            boot: Boot::Direct,
            store: Store::default(),
        }
    }
}

impl Contract {
    /// Examines whether the contract can be written so that an agent reads the same value (times to
    /// the millisecond). Without this a launcher learns of a bad name or a relative path only from
    /// a guest that has booted for nothing.
    ///
    /// # Errors
    /// What [`document::decode`](crate::document::decode) would say of it, or a value that would be
    /// read as another; the error names the token.
    pub fn check(&self) -> Result<(), Error> {
        if matches!(&self.workload, Workload::Command(argv) if argv.is_empty()) {
            return Err(Error::new(b"apppot.arg", "is missing from a command"));
        }
        for (name, _) in &self.env {
            if name.as_bytes().contains(&b'=') {
                return Err(Error::new(name.as_bytes(), "is no name of a variable"));
            }
        }
        if let Stdin::Ring(device) = &self.stdin {
            if device.is_relative() {
                let path = device.as_os_str().as_bytes();
                return Err(Error::new(path, "is no absolute path, for apppot.stdin"));
            }
        }
        let mut out = Writer::default();
        self.write(&mut out);
        let mut reader = Reader::default();
        for word in out.finish() {
            let token = Token::parse(word.as_bytes())?
                .ok_or_else(|| Error::new(word.as_bytes(), "is no token"))?;
            reader.take(&token)?;
        }
        reader.finish().map(drop)
    }
}
