//! What the tests share: trees made by ordinary tools, and images compared with them file by file.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use apppot_image::{Archive, Filesystem, Limits, Options, Result, Summary};
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{record, Directory, Ext4, Tree};
use apppot_snapshot::Entry;

/// Says why a test does not run; where everything has to run, that is a failure.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run: {reason}");
    eprintln!("skipped: {reason}");
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a shell script in a directory, and returns what it prints.
pub(crate) fn sh(directory: &Path, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(directory)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let (out, errors) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{script}: {errors} {}",
        String::from_utf8_lossy(&out)
    );
    String::from_utf8(out).unwrap()
}

/// A directory that is readable for everyone, as a root filesystem is.
pub(crate) fn fresh(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Files of every kind, with everything that a file can have.
pub(crate) fn varied(root: &Path) {
    sh(
        root,
        "mkdir -p bin etc/deep/er dev empty
         echo hello >etc/motd; touch -d '2001-02-03 04:05:06.123456789' etc/motd
         touch -d '1969-12-31 23:59:58.5' etc/old; touch -d '2040-01-01' etc/new
         head -c 300000 /dev/urandom >bin/tool; chmod 4755 bin/tool; ln bin/tool bin/same; ln bin/tool etc/deep/er/same
         ln -s /etc/motd etc/short; ln -s $(printf 'x%.0s' $(seq 300)) etc/long
         ln -s $(printf 'y%.0s' $(seq 59)) etc/59; ln -s $(printf 'z%.0s' $(seq 60)) etc/60
         mkfifo dev/fifo; chmod 1777 empty; : >etc/nothing
         printf x >\"etc/$(printf 'n%.0s' $(seq 255))\"
         printf x >'etc/a b\\c'; printf x >\"etc/$(printf 'new\\nline')\"
         truncate -s 30M etc/sparse; printf one | dd of=etc/sparse bs=1 seek=5000 conv=notrunc 2>/dev/null
         printf two | dd of=etc/sparse bs=1 seek=20971519 conv=notrunc 2>/dev/null
         truncate -s 5M etc/hole
         i=0; while [ $i -lt 600 ]; do printf x | dd of=etc/holes bs=1 seek=$((i * 66000)) conv=notrunc 2>/dev/null; i=$((i+1)); done
         mkdir many; cd many; seq 3000 | xargs touch",
    );
    if is_root() {
        sh(
            root,
            "mknod dev/null c 1 3; mknod dev/big b 300 70000; mknod dev/sda b 8 0
             chown 1234:70000 etc/motd; chown -h 5:6 etc/short; chown 4000000000:1 etc/old
             setcap cap_net_raw+ep bin/tool; setfattr -n user.note -v 'a note' etc/motd
             setfattr -n user.long -v $(printf 'v%.0s' $(seq 900)) etc/deep
             setfattr -n trusted.t -v t etc/deep/er",
        );
    }
}

/// Begins an image of that name.
pub(crate) fn image(path: &Path, options: Options) -> Filesystem {
    let mut options_of_file = File::options();
    let file = options_of_file
        .read(true)
        .write(true)
        .create(true)
        .truncate(true);
    Filesystem::new(file.open(path).unwrap(), options).unwrap()
}

/// An image of the archives, the first one at the bottom.
pub(crate) fn import(path: &Path, archives: &[&[u8]], kind: Archive) -> Result<Summary> {
    let mut filesystem = image(path, Options::default());
    for archive in archives {
        filesystem.add_tar(*archive, kind)?;
    }
    filesystem.finish()
}

/// What a reader gives in all.
pub(crate) fn all(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Everything in a tree but `lost+found`.
pub(crate) fn entries(tree: &dyn Tree) -> Vec<Entry> {
    let listing = record(tree, &Rules::everything(), &|_, _| {}).unwrap();
    let entries = listing.found.into_iter().map(|found| found.entry);
    entries
        .filter(|entry| entry.path != b"lost+found")
        .collect()
}

pub(crate) fn directory(path: &Path) -> Vec<Entry> {
    entries(&Directory::open(path, false).unwrap())
}

/// What our own reader finds in an image, after e2fsck has found nothing wrong with it.
pub(crate) fn contents(path: &Path) -> Vec<Entry> {
    check(path);
    entries(&Ext4::open(Box::new(File::open(path).unwrap()), 0).unwrap())
}

/// e2fsck finds nothing wrong.
pub(crate) fn check(path: &Path) {
    sh(
        Path::new("/"),
        &format!("e2fsck -fn '{}' 2>&1", path.display()),
    );
}

/// Compares two trees, entry by entry, so that a failure names the first that differs.
pub(crate) fn assert_same(left: &[Entry], right: &[Entry]) {
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left, right);
    }
    assert_eq!(left.len(), right.len());
}

pub(crate) fn limits(bytes: u64, names: u64) -> Options {
    Options {
        limits: Limits { bytes, names },
        ..Options::default()
    }
}

/// A tar archive made by hand.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    /// Adds a member of any kind, whatever sense it makes.
    pub(crate) fn add(mut self, path: &str, kind: u8, link: &str, content: &[u8]) -> Self {
        self.header(path, kind, link, content.len() as u64);
        self.content(content);
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.add(path, b'0', "", content.as_bytes())
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.add(path, b'5', "", b"")
    }

    /// Adds a pax header for the next member.
    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut content = String::new();
        for (name, value) in records {
            let rest = name.len() + value.len() + 3;
            let len = (1..)
                .find(|len| *len == rest + len.to_string().len())
                .unwrap();
            content += &format!("{len} {name}={value}\n");
        }
        self.add("pax", b'x', "", content.as_bytes())
    }

    pub(crate) fn header(&mut self, path: &str, kind: u8, link: &str, size: u64) {
        let mut block = [0; 512];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..108].copy_from_slice(b"0000755\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"00000000000\0");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(block);
    }

    pub(crate) fn content(&mut self, content: &[u8]) {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// The archive with its end.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Paths of the entries, and what files hold.
pub(crate) fn shown(image: &Path) -> String {
    check(image);
    let tree = Ext4::open(Box::new(File::open(image).unwrap()), 0).unwrap();
    let listing = tree.walk(&Rules::everything()).unwrap();
    let mut lines = Vec::new();
    for found in &listing.found {
        let path = String::from_utf8_lossy(&found.entry.path).into_owned();
        lines.push(match &found.entry.kind {
            _ if path == "lost+found" || path.is_empty() => continue,
            apppot_snapshot::entry::Kind::File(file) => {
                let mut content = vec![0; file.size as usize];
                tree.open(found).unwrap().read_at(&mut content, 0).unwrap();
                format!("{path}={}", String::from_utf8_lossy(&content))
            }
            apppot_snapshot::entry::Kind::Link(target) => {
                format!("{path}=={}", String::from_utf8_lossy(target))
            }
            apppot_snapshot::entry::Kind::Symlink(target) => {
                format!("{path}->{}", String::from_utf8_lossy(target))
            }
            _ => path,
        });
    }
    lines.join(" ")
}
