//! The contract from its tokens.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use super::{
    Boot, Changes, Channel, Contract, Files, Mount, Network, Root, Stdin, Terminal, User, Workload,
    Writes,
};
use crate::store::{Pointer, Url};
use crate::token::{number, parse, Error, Token, TERM};

/// What has been read so far: every key at most once, the repeated ones in order.
#[derive(Default)]
pub(crate) struct Reader {
    contract: Contract,
    /// Keys that may not come again; no longer than the list of known keys.
    seen: Vec<String>,
    filesystem: Option<(String, OsString)>,
    writes: Option<Writes>,
    user: Option<String>,
    uid: Option<u32>,
    group: Option<String>,
    gid: Option<u32>,
    groups: Vec<u32>,
    account: Option<String>,
    argv: Vec<OsString>,
    shell: bool,
    size: Option<(u16, u16)>,
    term: Option<String>,
    ring: Option<PathBuf>,
    results: Vec<String>,
    document: Option<Url>,
}

/// What tokens say.
pub(crate) enum Read {
    Contract(Box<Contract>),
    Pointer(Box<Pointer>),
}

impl Reader {
    /// Takes one token.
    ///
    /// # Errors
    /// An unknown or repeated key, or a value that the key does not take.
    pub(crate) fn take(&mut self, token: &Token) -> Result<(), Error> {
        match token.key {
            "mount" => self.contract.mounts.push(Mount::read(token)?),
            "changes" => self.contract.changes.push(Changes::read(token)?),
            "results" => self.results.push(utf8(token, token.bytes()?)?),
            "arg" => self.argv.push(os(token)?),
            "env" => self.contract.env.push(variable(token)?),
            "store" => self.take_object(token)?,
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
                if filesystem.is_empty() {
                    return Err(token.error("names no filesystem"));
                }
                self.filesystem = Some((utf8(token, filesystem)?, without_nul(token, source)?));
            }
            "writes" => self.writes = Some(writes(token)?),
            "files" => contract.files = Some(Files::read(token)?),
            "files-ring" => self.ring = Some(absolute(token, token.bytes()?)?),
            "jobdir" => contract.jobdir = absolute(token, token.bytes()?)?,
            "tmpdir" => contract.tmpdir = Some(absolute(token, token.bytes()?)?),
            "user" => self.user = Some(name(token)?),
            "uid" => self.uid = Some(id(token, token.value)?),
            "group" => self.group = Some(name(token)?),
            "gid" => self.gid = Some(id(token, token.value)?),
            "groups" => self.groups = ids(token)?,
            "account" => self.account = Some(name(token)?),
            "shell" if token.value == "yes" => self.shell = true,
            "shell" => return Err(token.error("takes only 'yes'")),
            "stdin" => contract.stdin = stdin(token)?,
            "terminal" => {
                let [rows, columns] = token.fields::<2>()?;
                self.size = Some((parse(token, &rows)?, parse(token, &columns)?));
            }
            TERM => self.term = Some(utf8(token, token.bytes()?)?),
            "umask" => contract.umask = umask(token)?,
            "hostname" => contract.hostname = Some(name(token)?),
            "network" => contract.network = Some(Network::read(token)?),
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
            "document" => self.document = Some(url(token, token.bytes()?)?),
            "version" | "contract" => {
                return Err(token.error("has its place on a command line only"))
            }
            _ => return Err(token.error("is not known to this version")),
        }
        Ok(())
    }

    fn take_object(&mut self, token: &Token) -> Result<(), Error> {
        let [name, text] = token.fields::<2>()?;
        let added = self.contract.store.add(&name, url(token, text)?);
        added.map_err(|what| token.error(what))
    }

    /// The whole contract.
    ///
    /// # Errors
    /// Keys that belong together and are not all there, or exclude each other.
    pub(crate) fn finish(self) -> Result<Contract, Error> {
        match self.finish_any()? {
            Read::Contract(contract) => Ok(*contract),
            Read::Pointer(pointer) => {
                let token = format!("apppot.document={}", pointer.url);
                let what = "is for user-data only: a document is not elsewhere twice";
                Err(Error::new(token.as_bytes(), what))
            }
        }
    }

    /// The whole contract, or where it is.
    ///
    /// # Errors
    /// As [`Reader::finish`].
    pub(crate) fn finish_any(mut self) -> Result<Read, Error> {
        let document = self.document.take();
        let contract = self.finish_contract()?;
        match document {
            Some(url) => pointer(url, contract).map(|pointer| Read::Pointer(Box::new(pointer))),
            None => {
                check_store(&contract)?;
                Ok(Read::Contract(Box::new(contract)))
            }
        }
    }

    fn finish_contract(mut self) -> Result<Contract, Error> {
        let mut contract = std::mem::take(&mut self.contract);
        contract.root = self.root()?;
        self.complete_files(&mut contract.files)?;
        contract.user = self.user()?;
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

    fn root(&mut self) -> Result<Option<Root>, Error> {
        match (self.filesystem.take(), self.writes) {
            (Some((filesystem, source)), writes) => Ok(Some(Root {
                filesystem,
                source,
                writes: writes.unwrap_or(Writes::Memory),
            })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::new(b"apppot.writes", "needs apppot.root")),
        }
    }

    fn complete_files(&mut self, files: &mut Option<Files>) -> Result<(), Error> {
        let (ring, results) = (self.ring.take(), std::mem::take(&mut self.results));
        match files {
            Some(files) => {
                if ring.is_some() && files.channel != Channel::Link {
                    return Err(Error::new(b"apppot.files-ring", "is for the channel link"));
                }
                (files.ring, files.results) = (ring, results);
                Ok(())
            }
            None if ring.is_some() => Err(Error::new(b"apppot.files-ring", "needs apppot.files")),
            None if !results.is_empty() => Err(Error::new(b"apppot.results", "needs apppot.files")),
            None => Ok(()),
        }
    }

    fn user(&mut self) -> Result<Option<User>, Error> {
        let (name, group) = (self.user.take(), self.group.take());
        if name.is_none() && group.is_none() && self.uid.is_none() && self.gid.is_none() {
            return match (self.groups.is_empty(), &self.account) {
                (true, None) => Ok(None),
                (false, _) => Err(Error::new(b"apppot.groups", "needs apppot.user")),
                (_, Some(_)) => Err(Error::new(b"apppot.account", "needs apppot.user")),
            };
        }
        Ok(Some(User {
            name: name.ok_or_else(|| part_of_user("user"))?,
            uid: self.uid.ok_or_else(|| part_of_user("uid"))?,
            group: group.ok_or_else(|| part_of_user("group"))?,
            gid: self.gid.ok_or_else(|| part_of_user("gid"))?,
            groups: std::mem::take(&mut self.groups),
            account: self.account.take(),
        }))
    }
}

/// What a document says that points to another.
fn pointer(url: Url, contract: Contract) -> Result<Pointer, Error> {
    let error = |what: &str| Error::new(format!("apppot.document={url}").as_bytes(), what);
    let deadline = contract.deadline;
    let deadline = deadline.ok_or_else(|| error("needs apppot.deadline"))?;
    let pointer = Pointer {
        deadline,
        grace: contract.grace,
        report: contract.store.report.clone(),
        url: url.clone(),
    };
    match contract == beside(&pointer) {
        true => Ok(pointer),
        false => Err(error(
            "stands beside other keys than deadline, grace and the store's report",
        )),
    }
}

/// What may stand beside a pointer, as a contract.
pub(crate) fn beside(pointer: &Pointer) -> Contract {
    let mut contract = Contract {
        deadline: Some(pointer.deadline),
        grace: pointer.grace,
        ..Contract::default()
    };
    contract.store.report.clone_from(&pointer.report);
    contract
}

/// Where an object store takes the link's place, the rest must suit.
fn check_store(contract: &Contract) -> Result<(), Error> {
    let store = &contract.store;
    if store.is_empty() {
        return Ok(());
    }
    let error = |what: &str| Err(Error::new(b"apppot.store", what));
    let by_link = |files: &Files| files.channel == Channel::Link && files.ring.is_none();
    let travels = contract.files.is_some();
    match () {
        () if store.report.is_none() => error("needs an object for the report"),
        () if contract.deadline.is_none() => error("needs apppot.deadline"),
        () if contract.boot != Boot::System => error("needs apppot.boot=system"),
        () if contract.link.is_some() => error("excludes apppot.link"),
        () if contract.terminal.is_some() => error("excludes apppot.terminal"),
        () if matches!(contract.stdin, Stdin::Ring(_)) => error("excludes a ring for apppot.stdin"),
        () if !store.stdin.is_empty() && contract.stdin != Stdin::Link => {
            error("has standard input, which needs apppot.stdin=link")
        }
        () if !contract.files.as_ref().is_none_or(by_link) => error("needs apppot.files=link"),
        () if store.files.is_empty() == travels || store.results.is_empty() == travels => {
            error("has objects for files and results when there is apppot.files, and only then")
        }
        () => Ok(()),
    }
}

fn part_of_user(key: &str) -> Error {
    Error::new(
        format!("apppot.{key}").as_bytes(),
        "is missing: apppot.user, .uid, .group and .gid belong together",
    )
}

impl Mount {
    fn read(token: &Token) -> Result<Self, Error> {
        let [channel, source, target, access] = token.fields::<4>()?;
        Ok(Mount {
            channel: read_channel(token, &channel, true)?,
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

impl Files {
    fn read(token: &Token) -> Result<Self, Error> {
        let [channel, target] = token.fields::<2>()?;
        Ok(Files {
            channel: read_channel(token, &channel, false)?,
            target: absolute(token, target)?,
            ring: None,
            results: Vec::new(),
        })
    }
}

/// A channel of the kind that the key takes.
fn read_channel(token: &Token, word: &[u8], live: bool) -> Result<Channel, Error> {
    std::str::from_utf8(word)
        .ok()
        .and_then(Channel::from_word)
        .filter(|channel| channel.is_live() == live)
        .ok_or_else(|| token.error("names a channel that is unknown here"))
}

impl Changes {
    fn read(token: &Token) -> Result<Self, Error> {
        let [source, base] = token.fields::<2>()?;
        Ok(Changes {
            source: absolute(token, source)?,
            any_base: match base.as_slice() {
                b"any" => true,
                b"own" => false,
                _ => return Err(token.error("is for neither its own nor any base")),
            },
        })
    }
}

impl Network {
    fn read(token: &Token) -> Result<Self, Error> {
        let [interface, address, gateway, nameserver] = token.fields::<4>()?;
        let (address, prefix) = match address.iter().position(|&byte| byte == b'/') {
            Some(at) => (&address[..at], parse(token, &address[at + 1..])?),
            None => return Err(token.error("has an address without the bits of its network")),
        };
        if prefix > 32 {
            return Err(token.error("has more bits of a network than an address has"));
        }
        Ok(Network {
            interface: interface_name(token, interface)?,
            address: ipv4(token, address)?,
            prefix,
            gateway: ipv4(token, &gateway)?,
            nameserver: ipv4(token, &nameserver)?,
        })
    }
}

/// A name that a network interface can have (`dev_valid_name` in net/core/dev.c), in ASCII.
fn interface_name(token: &Token, bytes: Vec<u8>) -> Result<String, Error> {
    const LONGEST: usize = 15;
    let good = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    if bytes.is_empty() || bytes.len() > LONGEST || bytes[0] == b'.' || !bytes.iter().all(good) {
        return Err(token.error("names no network interface"));
    }
    utf8(token, bytes)
}

fn ipv4(token: &Token, bytes: &[u8]) -> Result<Ipv4Addr, Error> {
    let text = std::str::from_utf8(bytes).ok();
    let address = text.and_then(|text| text.parse().ok());
    address.ok_or_else(|| token.error("has an address that is no IPv4 address"))
}

fn url(token: &Token, bytes: Vec<u8>) -> Result<Url, Error> {
    Url::new(&utf8(token, bytes)?)
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
    let text = String::from_utf8(bytes).map_err(|_| token.error("is not UTF-8 text"))?;
    if text.contains('\0') {
        return Err(token.error("holds a NUL byte"));
    }
    Ok(text)
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

/// A user or group id. The largest number means "leave it as it is" to setuid(2) and chown(2): a
/// job would stay root.
fn id(token: &Token, text: &str) -> Result<u32, Error> {
    match parse(token, text.as_bytes())? {
        u32::MAX => Err(token.error("is no usable id")),
        id => Ok(id),
    }
}

fn ids(token: &Token) -> Result<Vec<u32>, Error> {
    token.value.split(',').map(|text| id(token, text)).collect()
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

/// Up to four octal digits.
fn umask(token: &Token) -> Result<u32, Error> {
    let text = token.value;
    let octal = text.len() <= 4 && text.bytes().all(|byte| (b'0'..b'8').contains(&byte));
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mask| octal && mask <= 0o777)
        .ok_or_else(|| token.error("is no file mode creation mask, such as 0022"))
}

fn stdin(token: &Token) -> Result<Stdin, Error> {
    Ok(match token.value {
        "null" => Stdin::Null,
        "link" => Stdin::Link,
        _ => Stdin::Ring(absolute(token, token.bytes()?)?),
    })
}
