//! The guest's kernel: an ordinary x86 one, with the drivers that AppPot's machine needs built in or
//! as modules.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cache::{self, Kind};
use crate::{kernels, modules, Error, Result};

const FIND_HINT: &str = "build a kernel with 'make kernel-qemu', or name one with --kernel or \
    APPPOT_KERNEL; distributions' kernels below /boot serve where they can be read";
const KIND_HINT: &str = "a kernel for QEMU is a bzImage such as /boot/vmlinuz, or a vmlinux";
const LACKS_HINT: &str = "'make kernel-qemu' builds a kernel that has everything AppPot can use";

/// An x86 kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its file.
    pub path: PathBuf,
    /// Its release, such as `6.1.0-56-amd64`.
    pub release: String,
    /// Where the memory ends that it takes for its code and data: a physical address.
    end: u64,
    /// The directory with its modules.
    modules: PathBuf,
    /// Its list of what is built in, as `modules.builtin` has it.
    built_in: String,
    /// Its list of modules, as `modules.dep` has it; empty when it has none.
    loadable: String,
}

impl Kernel {
    /// The kernel at `chosen`, or the first one found that has the drivers `needed`.
    ///
    /// # Errors
    /// There is none, or it is no x86 kernel, or it lacks a driver.
    pub fn find(chosen: Option<&Path>, needed: &[&str]) -> Result<Self> {
        if let Some(path) = chosen {
            return Self::inspect(path);
        }
        let places = places();
        let mut first_error = None;
        for path in places.iter().filter(|path| path.is_file()) {
            let able = Self::inspect(path).and_then(|kernel| {
                kernel.modules(needed)?;
                Ok(kernel)
            });
            match able {
                Ok(kernel) => return Ok(kernel),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or(Error::NoKernel {
            what: "x86 kernel for QEMU",
            hint: FIND_HINT,
            searched: places,
        }))
    }

    /// Looks at the kernel at `path`.
    ///
    /// # Errors
    /// It is missing, or no x86 kernel, or nothing is known of its drivers.
    pub fn inspect(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(Error::file("open kernel", path))?;
        let refuse = |reason: String| Error::Kernel {
            path: path.clone(),
            reason,
            hint: KIND_HINT,
        };
        let metadata = std::fs::metadata(&path).map_err(Error::file("open kernel", &path))?;
        if !metadata.is_file() {
            return Err(refuse(String::from("it is no file")));
        }
        let release = match cache::get(Kind::Release, &metadata) {
            Some(release) => release,
            None => {
                let found = release(&path).map_err(Error::file("read kernel", &path))?;
                let release =
                    found.ok_or_else(|| refuse(String::from("it is no x86 Linux kernel")))?;
                cache::put(Kind::Release, &metadata, &release);
                release
            }
        };
        let places = module_places(&path, &release);
        let modules = places
            .iter()
            .find(|place| place.join(BUILT_IN).is_file())
            .ok_or_else(|| {
                refuse(format!(
                    "its module directory, which says what drivers it has, is neither of {}",
                    shown(&places)
                ))
            })?;
        let read = |name: &str| {
            let path = modules.join(name);
            std::fs::read_to_string(&path).map_err(Error::file("read module list", &path))
        };
        let end = File::open(&path).and_then(|file| end(&file));
        Ok(Kernel {
            end: end.map_err(Error::file("read kernel", &path))?,
            built_in: read(BUILT_IN)?,
            loadable: read(LOADABLE).unwrap_or_default(),
            modules: modules.clone(),
            release,
            path,
        })
    }

    /// Checks that the kernel and an initramfs of so many bytes fit into `memory`: where they do not, the
    /// machine would stand still without a word.
    ///
    /// # Errors
    /// They do not.
    pub(crate) fn check_memory(&self, memory: u64, initramfs: u64) -> Result<()> {
        // The initramfs is there twice while it is unpacked.
        let least = (self.end + 2 * initramfs + ROOM).next_multiple_of(1 << 20);
        if memory >= least {
            return Ok(());
        }
        let least = least >> 20;
        Err(Error::Memory {
            memory,
            reason: format!("kernel {} needs {least} MiB to start", self.release),
            hint: format!("pass --memory {least}M or more"),
        })
    }

    /// The modules that must be loaded for `drivers`, in the order of loading, by name and content.
    ///
    /// # Errors
    /// The kernel lacks one of the drivers.
    pub(crate) fn modules(&self, drivers: &[&str]) -> Result<Vec<PathBuf>> {
        let mut wanted = Vec::new();
        for &driver in drivers {
            if modules::lists(&self.built_in, driver) {
                continue;
            }
            if !modules::lists(&self.loadable, driver) {
                return Err(Error::KernelLacks {
                    release: self.release.clone(),
                    what: format!("driver '{driver}'"),
                    hint: LACKS_HINT,
                });
            }
            wanted.extend(asked_by_name(driver).iter().copied().filter(|name| {
                !modules::lists(&self.built_in, name) && modules::lists(&self.loadable, name)
            }));
            wanted.push(driver);
        }
        match wanted.is_empty() {
            true => Ok(Vec::new()),
            false => modules::resolve(&self.modules, &wanted),
        }
    }
}

/// Memory that a kernel needs beside itself until the agent runs.
const ROOM: u64 = 16 << 20;

const BUILT_IN: &str = "modules.builtin";
const LOADABLE: &str = "modules.dep";

/// What a module asks the kernel for by name when it is used, which its list of needs does not have.
fn asked_by_name(driver: &str) -> &'static [&'static str] {
    match driver {
        "ext4" | "xfs" | "btrfs" | "erofs" => &["crc32c_generic"],
        _ => &[],
    }
}

/// The kernel that is tried first when nobody chooses one.
#[must_use]
pub fn first() -> Option<PathBuf> {
    places().into_iter().find(|path| path.is_file())
}

/// Where a kernel is looked for, in this order.
fn places() -> Vec<PathBuf> {
    let mut places = kernels::places("vmlinux");
    if let Ok(host) = nix::sys::utsname::uname() {
        let release = host.release().to_string_lossy();
        places.push(PathBuf::from(format!("/boot/vmlinuz-{release}")));
        places.push(PathBuf::from(format!("/usr/lib/modules/{release}/vmlinuz")));
    }
    places.extend(installed());
    places
}

/// Kernels of the host's distribution, the newest name first.
fn installed() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/boot").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Where the modules of the kernel at `path` can be: beside it, beside the `/boot` that it is in, or
/// in the host's own directory.
fn module_places(path: &Path, release: &str) -> Vec<PathBuf> {
    let beside = path.parent().map(|parent| parent.join("modules"));
    let root = path.ancestors().nth(2).map(|root| root.join("lib/modules"));
    let mut places: Vec<PathBuf> = beside
        .into_iter()
        .chain(root)
        .chain([PathBuf::from("/lib/modules")])
        .map(|base| base.join(release))
        .collect();
    places.dedup();
    places
}

fn shown(places: &[PathBuf]) -> String {
    let shown: Vec<_> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    shown.join(", ")
}

/// The release of the kernel at `path`; `None` when it is no x86 kernel.
fn release(path: &Path) -> std::io::Result<Option<String>> {
    let file = File::open(path)?;
    let mut start = [0; 4096];
    let len = file.read_at(&mut start, 0)?;
    let start = &start[..len];
    if start.get(0x202..0x206) == Some(b"HdrS") {
        return release_of_bzimage(&file, start).map(Some);
    }
    match is_vmlinux(start) {
        true => release_of_vmlinux(&std::fs::read(path)?),
        false => Ok(None),
    }
}

/// See [`Kernel::end`].
fn end(file: &File) -> std::io::Result<u64> {
    let mut start = [0; 4096];
    let len = file.read_at(&mut start, 0)?;
    let start = &start[..len];
    if start.get(0x202..0x206) == Some(b"HdrS") {
        // `pref_address` and `init_size` of boot.rst.
        let (at, size) = (number(start, 0x258, 8), number(start, 0x260, 4));
        return Ok(at.zip(size).map_or(0, |(at, size)| at.saturating_add(size)));
    }
    // Program headers of an ELF file (elf(5)).
    const LOAD: u64 = 1;
    let header = number(start, 32, 8).zip(number(start, 54, 2));
    let (at, size) = header.unwrap_or_default();
    let segments = (0..number(start, 56, 2).unwrap_or_default()).filter_map(|index| {
        let segment = at.checked_add(index * size)? as usize;
        let field = |offset: usize| number(start, segment.checked_add(offset)?, 8);
        (number(start, segment, 4)? == LOAD).then_some(field(24)?.saturating_add(field(40)?))
    });
    Ok(segments.max().unwrap_or(0))
}

/// The little-endian number of so many bytes at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    let mut number = [0; 8];
    number[..len].copy_from_slice(bytes);
    Some(u64::from_le_bytes(number))
}

/// `Documentation/arch/x86/boot.rst`: the field `kernel_version` points to the text, less 0x200.
fn release_of_bzimage(file: &File, start: &[u8]) -> std::io::Result<String> {
    let at = u64::from(u16::from_le_bytes([start[0x20e], start[0x20f]])) + 0x200;
    let mut text = [0; 256];
    let len = file.read_at(&mut text, at)?;
    Ok(first_word(&text[..len]))
}

/// An ELF file for x86-64 whose first segment goes where kernels run, in the highest addresses. (A
/// User-Mode Linux kernel is an ELF file, too, and runs where programs do.)
fn is_vmlinux(start: &[u8]) -> bool {
    const MACHINE_X86_64: [u8; 2] = [62, 0];
    let segments = number(start, 32, 8).unwrap_or(0) as usize;
    start.starts_with(b"\x7fELF\x02\x01")
        && start.get(18..20) == Some(&MACHINE_X86_64)
        && number(start, segments.saturating_add(16), 8).is_some_and(|address| address >> 47 != 0)
}

/// The kernel's banner, `Linux version 7.3.4 (…`, is somewhere in it.
fn release_of_vmlinux(bytes: &[u8]) -> std::io::Result<Option<String>> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = bytes;
    while let Some(at) = find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            return Ok(Some(first_word(&rest[..rest.len().min(256)])));
        }
    }
    Ok(None)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|&byte| byte == wanted[0]) {
        at += next;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

fn first_word(text: &[u8]) -> String {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_graphic())
        .unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kernel file, with a module directory beside it.
    pub(crate) fn kernel(
        bytes: &[u8],
        built_in: &str,
        loadable: &str,
    ) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        std::fs::write(&path, bytes).unwrap();
        let modules = directory.path().join("modules/6.1.0-x");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join(BUILT_IN), built_in).unwrap();
        std::fs::write(modules.join(LOADABLE), loadable).unwrap();
        (directory, path)
    }

    pub(crate) fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        let text = b"6.1.0-x (somebody@somewhere) #1 SMP\0";
        bytes[0x500..0x500 + text.len()].copy_from_slice(text);
        bytes
    }

    fn vmlinux(address: u64) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[64 + 16..64 + 24].copy_from_slice(&address.to_le_bytes());
        bytes.extend(b"Linux version %s\0LLinux version 6.1.0-x (gcc) #1\0");
        bytes
    }

    #[test]
    fn both_kinds_of_kernels_say_their_release() {
        for bytes in [bzimage(), vmlinux(0xffff_ffff_8100_0000)] {
            let (_directory, path) = kernel(&bytes, "", "");
            assert_eq!(Kernel::inspect(&path).unwrap().release, "6.1.0-x");
        }
    }

    #[test]
    fn kernels_say_where_they_end() {
        let mut image = bzimage();
        image[0x258..0x260].copy_from_slice(&(16u64 << 20).to_le_bytes());
        image[0x260..0x264].copy_from_slice(&(30u32 << 20).to_le_bytes());
        let mut elf = vmlinux(0xffff_ffff_8100_0000);
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        elf[64 + 24..64 + 32].copy_from_slice(&(16u64 << 20).to_le_bytes());
        elf[64 + 40..64 + 48].copy_from_slice(&(30u64 << 20).to_le_bytes());
        for bytes in [image, elf] {
            let (_directory, path) = kernel(&bytes, "", "");
            let kernel = Kernel::inspect(&path).unwrap();
            kernel.check_memory(64 << 20, 1 << 20).unwrap();
            let error = kernel.check_memory(63 << 20, 1 << 20).unwrap_err();
            assert!(error.to_string().contains("needs 64 MiB"), "{error}");
        }
    }

    #[test]
    fn cut_off_headers_are_no_crash() {
        for bytes in [bzimage(), vmlinux(0)] {
            for len in 0..bytes.len() {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &bytes[..len]).unwrap();
                assert!(end(&File::open(file.path()).unwrap()).is_ok());
            }
        }
    }

    #[test]
    fn what_is_no_x86_kernel_is_refused() {
        for bytes in [&b"hello"[..], &vmlinux(0x6000_0000)] {
            let (_directory, path) = kernel(bytes, "", "");
            let error = Kernel::inspect(&path).unwrap_err().to_string();
            assert!(error.contains("no x86 Linux kernel"), "{error}");
        }
        let (directory, path) = kernel(&bzimage(), "", "");
        std::fs::remove_dir_all(directory.path().join("modules")).unwrap();
        let error = Kernel::inspect(&path).unwrap_err().to_string();
        assert!(error.contains("module directory"), "{error}");
        assert!(Kernel::inspect(Path::new("/no/such")).is_err());
    }

    #[test]
    fn only_modules_are_loaded_and_missing_drivers_are_named() {
        let built_in = "kernel/fs/overlayfs/overlay.ko\n";
        let loadable = "kernel/crypto/crc32c_generic.ko:\nkernel/fs/jbd2/jbd2.ko:\n\
            kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\n";
        let (_directory, path) = kernel(&bzimage(), built_in, loadable);
        let kernel = Kernel::inspect(&path).unwrap();
        let names = |drivers: &[&str]| -> Vec<String> {
            let paths = kernel.modules(drivers).unwrap();
            let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
            paths.iter().map(name).collect()
        };
        assert!(names(&["overlay"]).is_empty());
        assert_eq!(
            names(&["overlay", "ext4"]),
            ["crc32c_generic", "jbd2", "ext4"]
        );
        let error = kernel.modules(&["9p"]).unwrap_err().to_string();
        assert_eq!(error, "kernel 6.1.0-x has no driver '9p'");
    }
}
