//! What a hypervisor's process is given: files are opened and locked here, and the process gets them as
//! descriptors, under numbers that its arguments name.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::memfd::{memfd_create, MFdFlags};

use crate::containment::attributes::Writable;
use crate::containment::{Reach, Rule};
use crate::flock::{self, Use};
use crate::image::{Image, ImageKind};
use crate::initramfs::{self, Pieces};
use crate::limits;
use crate::overlay::Format;
use crate::ring::Ring;
use crate::spec::{Changes, Disk, MachineSpec, Share, Writes};
use crate::{Error, Result};

/// The numbers of descriptors that every hypervisor gets.
pub(crate) mod number {
    use crate::process::FIRST_DESCRIPTOR;
    use std::os::fd::RawFd;

    /// The link's socket.
    pub(crate) const LINK: RawFd = FIRST_DESCRIPTOR;
    /// The initramfs.
    pub(crate) const INITRAMFS: RawFd = FIRST_DESCRIPTOR + 1;
    /// The image, or the directory that holds the root filesystem.
    pub(crate) const ROOT: RawFd = FIRST_DESCRIPTOR + 2;
    /// The copy-on-write file on top of the image.
    pub(crate) const OVERLAY: RawFd = FIRST_DESCRIPTOR + 3;
    /// The first of those that the hypervisor has for itself; there are at most four.
    pub(crate) const OWN: RawFd = FIRST_DESCRIPTOR + 4;
    /// The first further disk; there are at most [`super::MAX_DISKS`].
    pub(crate) const DISKS: RawFd = FIRST_DESCRIPTOR + 8;
    /// The first changes archive; there are at most [`super::MAX_CHANGES`].
    pub(crate) const CHANGES: RawFd = FIRST_DESCRIPTOR + 10;
    /// The network's socket, of which each packet is an Ethernet frame.
    pub(crate) const NETWORK: RawFd = FIRST_DESCRIPTOR + 29;
    /// The first shared directory; there are at most [`super::MAX_SHARES`].
    pub(crate) const SHARES: RawFd = FIRST_DESCRIPTOR + 30;
}

/// The most changes archives that there are numbers for.
pub(crate) const MAX_CHANGES: usize = (number::NETWORK - number::CHANGES) as usize;
/// The most shared directories: what lies beyond is taken while a process is started.
pub(crate) const MAX_SHARES: usize = (crate::process::FIRST_COPY - number::SHARES) as usize;
/// The most further disks that there are numbers for.
pub(crate) const MAX_DISKS: usize = (number::CHANGES - number::DISKS) as usize;
/// The most descriptors beside these.
const OTHERS: usize = 11;

/// Checks that the machine's process may have as many descriptors as it is given.
///
/// # Errors
/// The limit is too low.
pub(crate) fn check_limit(spec: &MachineSpec) -> Result<()> {
    limits::check_open_files(OTHERS + spec.changes.len() + spec.shares.len())
}

/// The files of a machine.
#[derive(Debug)]
pub(crate) struct Given {
    image: Image,
    writes: Writes,
    changes: Vec<Changes>,
    shares: Vec<Share>,
    disks: Vec<Disk>,
    /// Empty when it is not given as a file.
    initramfs: Pieces,
}

impl Given {
    /// The files that `spec` names, and an initramfs with the agent and `modules`.
    pub(crate) fn new(spec: &MachineSpec, modules: Vec<(String, Vec<u8>)>) -> Self {
        Given {
            image: spec.image.clone(),
            writes: spec.writes.clone(),
            changes: spec.changes.clone(),
            shares: spec.shares.clone(),
            disks: spec.disks.clone(),
            initramfs: initramfs::build(spec.agent.clone(), modules),
        }
    }

    /// The initramfs.
    #[cfg(feature = "libvirt")]
    pub(crate) fn initramfs(&self) -> &Pieces {
        &self.initramfs
    }

    /// The initramfs, which then is not given as a file.
    pub(crate) fn take_initramfs(&mut self) -> Pieces {
        std::mem::take(&mut self.initramfs)
    }

    /// The shared directories, which then are not given.
    pub(crate) fn take_shares(&mut self) -> Vec<Share> {
        std::mem::take(&mut self.shares)
    }

    /// Bytes of the initramfs.
    pub(crate) fn initramfs_len(&self) -> u64 {
        self.initramfs.iter().map(|piece| piece.len() as u64).sum()
    }

    /// What the process may do with them.
    pub(crate) fn needs(&self) -> Vec<Need> {
        let mut needs = Vec::new();
        let mut given = |number, path: &Path, writes| needs.push(Need::given(number, path, writes));
        let writes_image = self.writes == Writes::Image;
        given(number::ROOT, &self.image.path, writes_image);
        if let Writes::Overlay(path) = &self.writes {
            given(number::OVERLAY, path, true);
        }
        for (number, changes) in (number::CHANGES..).zip(&self.changes) {
            given(number, &changes.path, false);
        }
        for (number, disk) in (number::DISKS..).zip(&self.disks) {
            given(number, Path::new(disk.what), disk.writable);
        }
        for (number, share) in (number::SHARES..).zip(&self.shares) {
            given(number, &share.host, !share.read_only);
        }
        needs
    }

    /// What stands behind the numbers, for people; `own` are the hypervisor's.
    pub(crate) fn describe(&self, own: Vec<(RawFd, &str)>) -> Vec<(RawFd, String)> {
        let mut memory = vec![(number::LINK, String::from("link (socketpair)"))];
        if !self.initramfs.is_empty() {
            let initramfs = format!("initramfs ({} bytes in memory)", self.initramfs_len());
            memory.push((number::INITRAMFS, initramfs));
        }
        let shown = |need: Need| Some((need.descriptor?, need.path.display().to_string()));
        let files = self.needs().into_iter().filter_map(shown);
        let own = own
            .into_iter()
            .map(|(number, what)| (number, what.to_owned()));
        let mut list: Vec<_> = memory.into_iter().chain(files).chain(own).collect();
        list.sort();
        list
    }
}

/// A file or directory that a hypervisor's process needs.
#[derive(Debug)]
pub(crate) struct Need {
    /// The number of its descriptor, when it is given one; else it is opened by its path.
    pub(crate) descriptor: Option<RawFd>,
    /// Its path.
    pub(crate) path: PathBuf,
    /// What for.
    pub(crate) reach: Reach,
}

impl Need {
    pub(crate) fn named(path: &Path, reach: Reach) -> Self {
        Need {
            descriptor: None,
            path: path.to_owned(),
            reach,
        }
    }

    pub(crate) fn given(number: RawFd, path: &Path, writes: bool) -> Self {
        Need {
            descriptor: Some(number),
            path: path.to_owned(),
            reach: if writes { Reach::Write } else { Reach::Read },
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.reach, self.path.display())
    }
}

/// Descriptors, and the numbers that they get.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    /// The number in the hypervisor's process, and which.
    pub(crate) list: Vec<(RawFd, OwnedFd)>,
}

impl Descriptors {
    /// Opens and locks the files of `given`, with copy-on-write files of this `format`.
    ///
    /// # Errors
    /// One is gone, not to be opened, or in use.
    pub(crate) fn open(given: &Given, format: &Format) -> Result<Self> {
        let mut opened = Descriptors::default();
        opened.open_image(&given.image, &given.writes)?;
        if let Writes::Overlay(path) = &given.writes {
            let overlay = format.open(path, &given.image.path)?;
            flock::take(&overlay, path, Use::Writing)?;
            opened.add(number::OVERLAY, overlay);
        }
        // What was examined of the archives is what is merged.
        for (number, Changes { path, stamp, .. }) in (number::CHANGES..).zip(&given.changes) {
            let file = File::open(path).map_err(Error::file("open changes archive", path))?;
            flock::take(&file, path, Use::Reading)?;
            stamp.check(&file, path)?;
            opened.add(number, file);
        }
        for (number, disk) in (number::DISKS..).zip(&given.disks) {
            if let Some(file) = &disk.file {
                opened.add(number, duplicate(file.as_fd())?);
            }
        }
        for (number, share) in (number::SHARES..).zip(&given.shares) {
            opened.add(number, open_path(&share.host)?);
        }
        if !given.initramfs.is_empty() {
            opened.add(number::INITRAMFS, memfd(&given.initramfs)?);
        }
        Ok(opened)
    }

    pub(crate) fn add(&mut self, number: RawFd, descriptor: impl Into<OwnedFd>) {
        self.list.push((number, descriptor.into()));
    }

    /// Makes a ring, when something goes through one.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn open_ring(&mut self, wanted: bool, number: RawFd) -> Result<Option<Ring>> {
        if !wanted {
            return Ok(None);
        }
        let failed = "make a ring";
        let ring = Ring::new().map_err(Error::system(failed))?;
        self.add(number, ring.memory().map_err(Error::system(failed))?);
        Ok(Some(ring))
    }

    fn open_image(&mut self, image: &Image, writes: &Writes) -> Result<()> {
        let path = &image.path;
        if image.kind == ImageKind::Directory {
            self.add(number::ROOT, open_path(path)?);
            return Ok(());
        }
        let write = *writes == Writes::Image;
        let what = if write {
            "write into image"
        } else {
            "open image"
        };
        let file = File::options()
            .read(true)
            .write(write)
            .open(path)
            .map_err(Error::file(what, path))?;
        flock::take(&file, path, if write { Use::Writing } else { Use::Reading })?;
        image.check(&file)?;
        self.add(number::ROOT, file);
        Ok(())
    }

    fn get(&self, number: RawFd) -> Option<&OwnedFd> {
        let mut list = self.list.iter();
        list.find_map(|(given, fd)| (*given == number).then_some(fd))
    }

    /// What the process may reach. What it is given is not looked up a second time.
    ///
    /// # Errors
    /// What it is not given cannot be opened.
    pub(crate) fn rules(&self, needs: &[Need]) -> Result<Vec<Rule>> {
        let rule = |need: &Need| {
            let given = need.descriptor.and_then(|number| self.get(number));
            let file = match given {
                Some(given) => duplicate(given.as_fd())?,
                None => open_path(&need.path)?,
            };
            let reach = need.reach;
            Ok(Rule { file, reach })
        };
        needs.iter().map(rule).collect()
    }

    /// The directories below which attributes may be changed.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub(crate) fn writable(&self, needs: &[Need]) -> Result<Vec<Writable>> {
        needs
            .iter()
            .filter(|need| need.reach == Reach::Write)
            .filter_map(|need| Some((need.descriptor?, self.get(need.descriptor?)?)))
            .map(|(number, directory)| Ok((number, duplicate(directory.as_fd())?)))
            .collect()
    }
}

fn memfd(pieces: &Pieces) -> Result<OwnedFd> {
    let failed = "keep the initramfs in memory";
    let mut file: File = memfd_create(c"apppot-initramfs", MFdFlags::MFD_CLOEXEC)
        .map_err(Error::system(failed))?
        .into();
    for piece in pieces {
        file.write_all(piece).map_err(Error::system(failed))?;
    }
    Ok(file.into())
}

/// Another descriptor of the same file.
///
/// # Errors
/// There are too many.
pub(crate) fn duplicate(fd: BorrowedFd) -> Result<OwnedFd> {
    fd.try_clone_to_owned()
        .map_err(Error::system("copy a descriptor"))
}

/// Opens `path` to name it, not to read it.
///
/// # Errors
/// It is gone.
pub(crate) fn open_path(path: &Path) -> Result<OwnedFd> {
    use nix::fcntl::{open, OFlag};
    open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|errno| Error::file("open", path)(errno.into()))
}
