//! Guest memory: the file that it is, and the initramfs in it.
//!
//! A kernel of ours is given the file with the initramfs in it, and unpacks that without copying
//! (patches 0016 and 0017): 5 ms of a boot. A stock kernel reads the initramfs from another file, and
//! makes the one for its memory itself, in a directory that it is given.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::arguments::{self, descriptor};
use super::kernel::{Has, Kernel};
use crate::descriptors::Given;
use crate::initramfs::{self, Pieces};
use crate::limits::Backing;
use crate::process::descriptor_path;
use crate::{Error, Result};

/// Guest memory as it is planned.
#[derive(Debug)]
pub(super) struct Memory {
    /// Bytes; a multiple of [`MIB`].
    pub(super) size: u64,
    /// What is in it when the kernel starts; `None` when the kernel makes the file itself.
    initramfs: Option<Pieces>,
}

/// Guest memory as it is when the kernel starts.
#[derive(Debug)]
pub(super) struct Made {
    /// The file, or the directory for it.
    pub(super) descriptor: OwnedFd,
    /// A directory that still has a name, to be removed at the end.
    pub(super) directory: Option<PathBuf>,
}

const MIB: u64 = 1 << 20;

impl Memory {
    /// `size` bytes of memory of `kernel`, rounded down to MiB, with the initramfs in it if the kernel
    /// knows how to find it there.
    pub(super) fn new(kernel: &Kernel, size: u64, given: &mut Given) -> Self {
        let in_memory = kernel.has("UML_MEM_FD") != Has::No;
        Memory {
            size: size / MIB * MIB,
            initramfs: in_memory.then(|| given.take_initramfs()),
        }
    }

    /// Where in memory `initramfs` starts: as late as it can on a page's boundary, so that it is in
    /// nothing's way. And its length.
    fn place(&self, initramfs: &Pieces) -> (u64, u64) {
        let len = initramfs
            .iter()
            .map(|piece| piece.len() as u64)
            .sum::<u64>();
        let pages = len.next_multiple_of(initramfs::PAGE);
        (self.size.saturating_sub(pages), len)
    }

    /// What the command line says of it.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = vec![arguments::memory(self.size)];
        match &self.initramfs {
            Some(initramfs) => {
                let (offset, len) = self.place(initramfs);
                words.extend(arguments::given_memory(offset, len));
            }
            None => words.push(arguments::initramfs()),
        }
        words
    }

    /// The kernel's environment: where it makes the file. It must not be empty, for its end is where the
    /// kernel takes its stack to start (get_top_address in arch/um/kernel/um_arch.c).
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let (name, value) = match self.is_made_by_kernel() {
            true => ("TMPDIR", descriptor_path(descriptor::MEMORY)),
            false => ("LC_ALL", String::from("C")),
        };
        vec![(name.to_owned(), value)]
    }

    /// What the descriptor is, for people.
    pub(super) fn shown(&self) -> &'static str {
        match self.is_made_by_kernel() {
            true => "private directory for guest memory",
            false => "guest memory, with the initramfs in it",
        }
    }

    /// Whether the kernel's process has to reach the directory to make its file there.
    pub(super) fn is_made_by_kernel(&self) -> bool {
        self.initramfs.is_none()
    }

    /// Makes it in `backing`.
    ///
    /// # Errors
    /// No file or directory can be made there, or it has no room.
    pub(super) fn make(&self, backing: &Backing) -> Result<Made> {
        let Some(initramfs) = &self.initramfs else {
            let private = backing.private_directory()?;
            return Ok(Made {
                descriptor: private.descriptor,
                directory: private.path,
            });
        };
        let file = backing.unnamed_file()?;
        let (mut offset, _) = self.place(initramfs);
        for piece in initramfs {
            file.write_all_at(piece, offset)
                .map_err(Error::file("put the initramfs in memory in", &backing.path))?;
            offset += piece.len() as u64;
        }
        Ok(Made {
            descriptor: file.into(),
            directory: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    #[test]
    fn the_initramfs_ends_with_the_memory() {
        let memory = Memory {
            size: 2 * MIB,
            initramfs: Some(vec![Cow::Borrowed(&[1; 4096]), Cow::Borrowed(&[2; 4])]),
        };
        assert_eq!(
            memory.words(),
            ["mem=2M", "mem_fd=105", "initrdmem=2088960,4100"]
        );
        assert_eq!(memory.environment().len(), 1);
        let backing = crate::limits::choose_backing(memory.size).unwrap();
        let made = memory.make(&backing).unwrap();
        let file = std::fs::File::from(made.descriptor);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 2_088_960 + 4092).unwrap();
        assert_eq!(bytes, [1, 1, 1, 1, 2, 2, 2, 2]);
        assert!(file.metadata().unwrap().len() <= memory.size);
    }
}
