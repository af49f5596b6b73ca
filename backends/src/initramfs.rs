//! The initramfs, made on the fly: the agent and the modules that the kernel needs.
//!
//! The format is cpio "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`). It is
//! not compressed: it is small, and memory is faster than any decompressor.

/// Where the agent looks for modules, in the order of loading: `00-name.ko`, `01-…`.
const MODULES: &str = "modules";

/// Builds the archive: `/init`, the mount points and nodes that the agent needs before it has
/// mounted anything, and `modules` (name and content), which are loaded in this order.
pub(crate) fn build(agent: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let content: usize = modules.iter().map(|(_, bytes)| bytes.len() + 256).sum();
    let mut archive = Archive {
        bytes: Vec::with_capacity(agent.len() + content + 2048),
        inode: 0,
    };
    archive.entry("init", 0o100_755, agent, (0, 0));
    archive.entry("dev", 0o040_755, b"", (0, 0));
    archive.entry("dev/console", 0o020_600, b"", (5, 1));
    archive.entry("dev/null", 0o020_666, b"", (1, 3));
    archive.entry("proc", 0o040_755, b"", (0, 0));
    archive.entry("sys", 0o040_755, b"", (0, 0));
    if !modules.is_empty() {
        archive.entry(MODULES, 0o040_755, b"", (0, 0));
    }
    for (index, (name, bytes)) in modules.iter().enumerate() {
        let name = format!("{MODULES}/{index:02}-{name}");
        archive.entry(&name, 0o100_644, bytes, (0, 0));
    }
    archive.entry("TRAILER!!!", 0, b"", (0, 0));
    archive.bytes
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a file; `device` is a device node's major and minor number.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
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
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
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
            b"agent",
            &[(String::from("overlay.ko"), b"module!".to_vec())],
        );
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
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
        let archive = build(b"agent", &[(String::from("a.ko"), vec![1, 2, 3])]);
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
            "sys",
            "modules",
            "modules/00-a.ko",
        ];
        assert_eq!(names.lines().collect::<Vec<_>>(), expected);
    }
}
