//! The initramfs, made on the fly: the agent and the modules that the kernel needs.
//!
//! The format is cpio "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`). It is
//! not compressed: it is small, and memory is faster than any decompressor.

use std::borrow::Cow;

/// Where the agent looks for modules, in the order of loading: `00-name.ko`, `01-…`.
const MODULES: &str = "modules";

/// The archive in pieces, one after the other: the agent is not copied.
pub type Pieces = Vec<Cow<'static, [u8]>>;

/// Builds the archive: `/init`, the mount points and nodes that the agent needs before it has
/// mounted anything, and `modules` (name and content), which are loaded in this order.
#[must_use]
pub fn build(agent: Cow<'static, [u8]>, modules: Vec<(String, Vec<u8>)>) -> Pieces {
    let mut archive = Archive::default();
    // First, and on a page's boundary: the kernel's copy of it may be this one (patch 0017).
    archive.entry(&aligned("init"), 0o100_755, agent, (0, 0));
    let nothing = || Cow::Borrowed(&b""[..]);
    archive.entry("dev", 0o040_755, nothing(), (0, 0));
    archive.entry("dev/console", 0o020_600, nothing(), (5, 1));
    archive.entry("dev/null", 0o020_666, nothing(), (1, 3));
    for directory in ["proc", "root", "lower", "upper"] {
        archive.entry(directory, 0o040_755, nothing(), (0, 0));
    }
    if !modules.is_empty() {
        archive.entry(MODULES, 0o040_755, nothing(), (0, 0));
    }
    for (index, (name, bytes)) in modules.into_iter().enumerate() {
        let name = format!("{MODULES}/{index:02}-{name}");
        archive.entry(&name, 0o100_644, Cow::Owned(bytes), (0, 0));
    }
    archive.entry("TRAILER!!!", 0, nothing(), (0, 0));
    archive.pieces
}

/// Bytes of a page of memory.
pub(crate) const PAGE: u64 = 4096;

/// `name` with so many NUL bytes after it that the content of an archive's first entry starts on the
/// second page. More than one is allowed for this ("c_namesize" in buffer-format.rst).
fn aligned(name: &str) -> String {
    // The last NUL is the one that every name ends with.
    let len = PAGE as usize - HEADER - 1;
    let mut name = name.to_owned();
    name.extend(std::iter::repeat_n('\0', len.saturating_sub(name.len())));
    name
}

/// Bytes before an entry's name.
const HEADER: usize = 110;

#[derive(Default)]
struct Archive {
    pieces: Pieces,
    /// Bytes in all pieces.
    len: usize,
    inode: u32,
}

impl Archive {
    /// Adds a file; `device` is a device node's major and minor number.
    fn entry(&mut self, name: &str, mode: u32, content: Cow<'static, [u8]>, device: (u32, u32)) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // mtime
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0, // major and minor of the device that holds the file
            0,
            device.0,
            device.1,
            // The name with its NUL byte.
            name.len() as u32 + 1,
            0, // checksum: none in this variant
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        self.add(header.into());
        self.add(content);
    }

    /// Adds a piece, and zeros up to a multiple of four.
    fn add(&mut self, piece: Cow<'static, [u8]>) {
        self.len += piece.len();
        self.pieces.push(piece);
        let padding = self.len.next_multiple_of(4) - self.len;
        self.len += padding;
        self.pieces.push(Cow::Borrowed(&[0; 3][..padding]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn headers_and_contents_are_aligned() {
        let archive = build(
            Cow::Borrowed(b"agent"),
            vec![(String::from("overlay.ko"), b"module!".to_vec())],
        )
        .concat();
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
        assert_eq!(&archive[PAGE as usize..][..5], b"agent");
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("modules/00-overlay.ko\0"));
        assert!(text.contains("TRAILER!!!\0"));
    }

    /// The format as another implementation reads it.
    #[test]
    fn cpio_lists_what_was_written() {
        let spawned = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut cpio) = spawned else {
            assert!(std::env::var_os("CI").is_none(), "cpio is not installed");
            eprintln!("skipped: cpio is not installed");
            return;
        };
        let modules = vec![(String::from("a.ko"), vec![1, 2, 3])];
        let archive = build(Cow::Borrowed(b"agent"), modules).concat();
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let listed = cpio.wait_with_output().unwrap();
        assert!(listed.status.success());
        let names = String::from_utf8(listed.stdout).unwrap();
        let expected = [
            "init",
            "dev",
            "dev/console",
            "dev/null",
            "proc",
            "root",
            "lower",
            "upper",
            "modules",
            "modules/00-a.ko",
        ];
        assert_eq!(names.lines().collect::<Vec<_>>(), expected);
    }
}
