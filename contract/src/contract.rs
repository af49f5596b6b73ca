//! The contract as a value, and its keys.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::token::{Error, Token, Writer, TERM};

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
    /// `apppot.env`, repeated: environment variables added to the clean environment.
    pub env: Vec<(OsString, OsString)>,
    /// `apppot.hostname`: the guest's host name.
    pub hostname: Option<String>,
    /// `apppot.deadline`: when the job must have ended, in milliseconds since the epoch.
    pub deadline: Option<SystemTime>,
    /// `apppot.grace`: what passes between asking processes to end and ending them, milliseconds.
    pub grace: Duration,
    /// `apppot.boot`: who is PID 1 while the job runs.
    pub boot: Boot,
}

/// The appliance's root filesystem and what becomes of writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Filesystem type as mount(2) takes it: `ext4`, `squashfs`, `hostfs`.
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

/// How a directory of the host is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// User-Mode Linux's own filesystem (`Documentation/filesystems/hostfs`).
    Hostfs,
}

/// A directory of the host, seen in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// How it is reached.
    pub channel: Channel,
    /// What the channel's filesystem takes as source: for hostfs a host path.
    pub source: OsString,
    /// Where the guest sees it; made when it is missing.
    pub target: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
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
    /// `closed`: the job starts without descriptor 0.
    Closed,
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

/// Who is PID 1 while the job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The agent.
    Direct,
    /// The image's own init; the agent runs as one of its services.
    System,
}

impl Default for Contract {
    fn default() -> Self {
        Contract {
            id: String::from("apppot"),
            link: None,
            root: None,
            mounts: Vec::new(),
            jobdir: PathBuf::from("/"),
            tmpdir: None,
            user: None,
            workload: Workload::Default,
            stdin: Stdin::Null,
            terminal: None,
            env: Vec::new(),
            hostname: None,
            deadline: None,
            grace: Duration::from_secs(4),
            boot: Boot::Direct,
        }
    }
}

impl Contract {
    /// The contract as tokens, without the version.
    pub(crate) fn write(&self, out: &mut Writer) {
        out.add("id", &self.id);
        if let Some(link) = &self.link {
            out.add("link", link.as_os_str().as_bytes());
        }
        if let Some(root) = &self.root {
            out.add_fields(
                "root",
                &[root.filesystem.as_bytes(), root.source.as_bytes()],
            );
            out.add("writes", root.writes.word());
        }
        for mount in &self.mounts {
            mount.write(out);
        }
        out.add("jobdir", self.jobdir.as_os_str().as_bytes());
        if let Some(tmpdir) = &self.tmpdir {
            out.add("tmpdir", tmpdir.as_os_str().as_bytes());
        }
        if let Some(user) = &self.user {
            user.write(out);
        }
        self.workload.write(out);
        out.add("stdin", self.stdin.word());
        if let Some(terminal) = &self.terminal {
            let (rows, columns) = (terminal.rows.to_string(), terminal.columns.to_string());
            out.add_fields("terminal", &[rows.as_bytes(), columns.as_bytes()]);
            out.add(TERM, &terminal.term);
        }
        for (name, value) in &self.env {
            out.add("env", [name.as_bytes(), b"=", value.as_bytes()].concat());
        }
        if let Some(hostname) = &self.hostname {
            out.add("hostname", hostname);
        }
        if let Some(deadline) = self.deadline {
            let since = deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
            out.add("deadline", since.as_millis().to_string());
        }
        out.add("grace", self.grace.as_millis().to_string());
        out.add("boot", self.boot.word());
    }
}

impl Mount {
    fn write(&self, out: &mut Writer) {
        let Channel::Hostfs = self.channel;
        out.add_fields(
            "mount",
            &[
                b"hostfs",
                self.source.as_bytes(),
                self.target.as_os_str().as_bytes(),
                if self.read_only { b"ro" } else { b"rw" },
            ],
        );
    }

    fn read(token: &Token) -> Result<Self, Error> {
        let [channel, source, target, access] = token.fields::<4>()?;
        Ok(Mount {
            channel: match channel.as_slice() {
                b"hostfs" => Channel::Hostfs,
                _ => return Err(token.error("names an unknown channel")),
            },
            source: without_nul(token, source)?,
            target: absolute(token, target)?,
            read_only: match access.as_slice() {
                b"ro" => true,
                b"rw" => false,
                _ => return Err(token.error("is neither ro nor rw")),
            },
        })
    }
}

impl User {
    fn write(&self, out: &mut Writer) {
        out.add("user", &self.name);
        out.add("uid", self.uid.to_string());
        out.add("group", &self.group);
        out.add("gid", self.gid.to_string());
        if !self.groups.is_empty() {
            let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
            out.add("groups", groups.join(","));
        }
    }
}

impl Workload {
    fn write(&self, out: &mut Writer) {
        match self {
            Workload::Command(argv) => {
                for arg in argv {
                    out.add("arg", arg.as_bytes());
                }
            }
            Workload::Default => {}
            Workload::Shell => out.add("shell", "yes"),
        }
    }
}

impl Writes {
    fn word(self) -> &'static str {
        match self {
            Writes::Memory => "memory",
            Writes::Device => "device",
        }
    }
}

impl Boot {
    fn word(self) -> &'static str {
        match self {
            Boot::Direct => "direct",
            Boot::System => "system",
        }
    }
}

impl Stdin {
    fn word(&self) -> &[u8] {
        match self {
            Stdin::Null => b"null",
            Stdin::Closed => b"closed",
            Stdin::Link => b"link",
            Stdin::Ring(device) => device.as_os_str().as_bytes(),
        }
    }
}

/// What has been read so far: every key at most once, the repeated ones in order.
#[derive(Default)]
pub(crate) struct Reader {
    contract: Contract,
    seen: Vec<String>,
    filesystem: Option<(String, OsString)>,
    writes: Option<Writes>,
    user: Option<String>,
    uid: Option<u32>,
    group: Option<String>,
    gid: Option<u32>,
    groups: Vec<u32>,
    argv: Vec<OsString>,
    shell: bool,
    size: Option<(u16, u16)>,
    term: Option<String>,
}

impl Reader {
    /// Takes one token.
    ///
    /// # Errors
    /// An unknown or repeated key, or a value that the key does not take.
    pub(crate) fn take(&mut self, token: &Token) -> Result<(), Error> {
        match token.key {
            "mount" => self.contract.mounts.push(Mount::read(token)?),
            "arg" => self.argv.push(os(token)?),
            "env" => self.contract.env.push(variable(token)?),
            key if self.seen.iter().any(|seen| seen == key) => {
                return Err(token.error("repeats a key"));
            }
            key => {
                self.take_once(token)?;
                self.seen.push(key.to_owned());
            }
        }
        Ok(())
    }

    fn take_once(&mut self, token: &Token) -> Result<(), Error> {
        let contract = &mut self.contract;
        match token.key {
            "id" => contract.id = name(token)?,
            "link" => contract.link = Some(absolute(token, token.bytes()?)?),
            "root" => {
                let [filesystem, source] = token.fields::<2>()?;
                self.filesystem = Some((utf8(token, filesystem)?, without_nul(token, source)?));
            }
            "writes" => self.writes = Some(writes(token)?),
            "jobdir" => contract.jobdir = absolute(token, token.bytes()?)?,
            "tmpdir" => contract.tmpdir = Some(absolute(token, token.bytes()?)?),
            "user" => self.user = Some(name(token)?),
            "uid" => self.uid = Some(number(token)?),
            "group" => self.group = Some(name(token)?),
            "gid" => self.gid = Some(number(token)?),
            "groups" => self.groups = numbers(token)?,
            "shell" if token.value == "yes" => self.shell = true,
            "stdin" => contract.stdin = stdin(token)?,
            "terminal" => {
                let [rows, columns] = token.fields::<2>()?;
                self.size = Some((parse(token, &rows)?, parse(token, &columns)?));
            }
            TERM => self.term = Some(utf8(token, token.bytes()?)?),
            "hostname" => contract.hostname = Some(name(token)?),
            "deadline" => {
                let since = Duration::from_millis(number(token)?);
                contract.deadline = Some(
                    UNIX_EPOCH
                        .checked_add(since)
                        .ok_or_else(|| token.error("is too far away"))?,
                );
            }
            "grace" => contract.grace = Duration::from_millis(number(token)?),
            "boot" => contract.boot = boot(token)?,
            _ => return Err(token.error("is not known to this version")),
        }
        Ok(())
    }

    /// The whole contract.
    ///
    /// # Errors
    /// Keys that belong together and are not all there, or exclude each other.
    pub(crate) fn finish(self) -> Result<Contract, Error> {
        let mut contract = self.contract;
        contract.root = match (self.filesystem, self.writes) {
            (Some((filesystem, source)), writes) => Some(Root {
                filesystem,
                source,
                writes: writes.unwrap_or(Writes::Memory),
            }),
            (None, None) => None,
            (None, Some(_)) => return Err(Error::new(b"apppot.writes", "needs apppot.root")),
        };
        contract.user = match (self.user, self.uid, self.group, self.gid) {
            (Some(name), Some(uid), Some(group), Some(gid)) => Some(User {
                name,
                uid,
                group,
                gid,
                groups: self.groups,
            }),
            (None, None, None, None) if self.groups.is_empty() => None,
            _ => {
                return Err(Error::new(
                    b"apppot.user",
                    "needs all of apppot.user, .uid, .group and .gid",
                ))
            }
        };
        contract.workload = match (self.argv.is_empty(), self.shell) {
            (false, false) => Workload::Command(self.argv),
            (true, false) => Workload::Default,
            (true, true) => Workload::Shell,
            (false, true) => return Err(Error::new(b"apppot.shell", "excludes apppot.arg")),
        };
        contract.terminal = match (self.size, self.term) {
            (Some((rows, columns)), term) => Some(Terminal {
                term: term.unwrap_or_else(|| String::from("dumb")),
                rows,
                columns,
            }),
            // The console's type on a boot that is not ours to describe: nothing to do with a job.
            (None, _) => None,
        };
        Ok(contract)
    }
}

fn without_nul(token: &Token, bytes: Vec<u8>) -> Result<OsString, Error> {
    if bytes.contains(&0) {
        return Err(token.error("holds a NUL byte"));
    }
    Ok(OsString::from_vec(bytes))
}

fn os(token: &Token) -> Result<OsString, Error> {
    without_nul(token, token.bytes()?)
}

fn absolute(token: &Token, bytes: Vec<u8>) -> Result<PathBuf, Error> {
    let path = PathBuf::from(without_nul(token, bytes)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(token.error("is no absolute path"))
    }
}

fn utf8(token: &Token, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| token.error("is not UTF-8 text"))
}

/// A name that goes into files such as `/etc/passwd`: no separator, no control character.
fn name(token: &Token) -> Result<String, Error> {
    let text = utf8(token, token.bytes()?)?;
    let bad = |c: char| c.is_control() || matches!(c, ':' | '/' | ',');
    if text.is_empty() || text.contains(bad) {
        return Err(token.error("is no usable name"));
    }
    Ok(text)
}

fn parse<T: std::str::FromStr>(token: &Token, text: &[u8]) -> Result<T, Error> {
    std::str::from_utf8(text)
        .ok()
        // FromStr also takes a leading '+'.
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| token.error("is no number, or one that is too large"))
}

fn number<T: std::str::FromStr>(token: &Token) -> Result<T, Error> {
    parse(token, token.value.as_bytes())
}

fn numbers(token: &Token) -> Result<Vec<u32>, Error> {
    token
        .value
        .split(',')
        .map(|text| parse(token, text.as_bytes()))
        .collect()
}

fn variable(token: &Token) -> Result<(OsString, OsString), Error> {
    let text = os(token)?;
    let bytes = text.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        None | Some(0) => Err(token.error("is no NAME=value")),
        Some(at) => Ok((
            OsStr::from_bytes(&bytes[..at]).to_owned(),
            OsStr::from_bytes(&bytes[at + 1..]).to_owned(),
        )),
    }
}

fn writes(token: &Token) -> Result<Writes, Error> {
    [Writes::Memory, Writes::Device]
        .into_iter()
        .find(|writes| writes.word() == token.value)
        .ok_or_else(|| token.error("is neither memory nor device"))
}

fn boot(token: &Token) -> Result<Boot, Error> {
    [Boot::Direct, Boot::System]
        .into_iter()
        .find(|boot| boot.word() == token.value)
        .ok_or_else(|| token.error("is neither direct nor system"))
}

fn stdin(token: &Token) -> Result<Stdin, Error> {
    Ok(match token.value {
        "null" => Stdin::Null,
        "closed" => Stdin::Closed,
        "link" => Stdin::Link,
        _ => Stdin::Ring(absolute(token, token.bytes()?)?),
    })
}
