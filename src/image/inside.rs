//! Single files of an image, read without a guest: what tells of the image.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use apppot_backends::image::Image;
use apppot_snapshot::entry::Kind;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Ext4, Found, Tree};
use serde_json::Value;

/// Longest file that is read, bytes; more is left out.
const LONGEST: u64 = 1 << 20;

/// Reads the file of that path.
type Reader = dyn Fn(&str) -> Option<Vec<u8>>;

/// The files of an image.
pub(super) struct Inside {
    /// How many there are, where they have been counted.
    pub(super) files: Option<u64>,
    read: Box<Reader>,
}

impl Inside {
    /// Opens an image; `None` when nothing here reads its filesystem.
    ///
    /// # Errors
    /// The image cannot be read.
    pub(super) fn open(image: &Image) -> Result<Option<Self>> {
        match image.filesystem {
            Some("ext4") => {}
            Some("squashfs") if image.start == 0 => return Ok(Some(Self::squashfs(&image.path))),
            _ => return Ok(None),
        }
        let tree = Ext4::open(Box::new(File::open(&image.path)?), image.start)?;
        let found = tree.walk(&Rules::everything())?.found;
        Ok(Some(Inside {
            files: Some(found.len() as u64),
            read: Box::new(move |path| read(&tree, &found, path)),
        }))
    }

    fn squashfs(path: &Path) -> Self {
        let image = path.to_owned();
        Inside {
            files: None,
            read: Box::new(move |path| unsquash(&image, path)),
        }
    }

    /// The name of the distribution (os-release(5)).
    pub(super) fn os(&self) -> Option<String> {
        let text = (self.read)("usr/lib/os-release").or_else(|| (self.read)("etc/os-release"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches(['"', '\'']).to_owned())
    }

    /// The version of the agent that is installed; `None`: launchers bring theirs.
    pub(super) fn agent(&self) -> Option<String> {
        let text = (self.read)(super::boot::VERSION)?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// What the image says it was made of.
    pub(super) fn origin(&self) -> Value {
        let text = (self.read)(super::ORIGIN).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    }

    /// What runs when nobody says what.
    pub(super) fn command(&self) -> Option<Vec<String>> {
        const AUTORUN: &str = "etc/apppot/autorun";
        if (self.read)(AUTORUN).is_some() {
            return Some(vec![format!("/{AUTORUN}")]);
        }
        let document = (self.read)(super::workload::PATH)?;
        let contract = apppot_contract::document::decode(&document).ok()?;
        match contract.workload {
            apppot_contract::Workload::Command(argv) => Some(
                argv.iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect(),
            ),
            _ => None,
        }
    }
}

fn read(tree: &dyn Tree, found: &[Found], path: &str) -> Option<Vec<u8>> {
    let named = |path: &[u8]| found.iter().find(|found| found.entry.path == path);
    let mut at = named(path.as_bytes())?;
    if let Kind::Link(first) = &at.entry.kind {
        at = named(first)?;
    }
    let Kind::File(file) = &at.entry.kind else {
        return None;
    };
    let mut bytes = vec![0; file.size.min(LONGEST) as usize];
    tree.open(at).ok()?.read_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

/// A file of a squashfs image; `None` also where there is no unsquashfs.
fn unsquash(image: &Path, path: &str) -> Option<Vec<u8>> {
    let mut child = Command::new("unsquashfs")
        .env("PATH", super::tools::path())
        .arg("-cat")
        .arg(image)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut bytes = Vec::new();
    let read = child.stdout.take()?.take(LONGEST).read_to_end(&mut bytes);
    // The pipe is closed: what has more to say ends, too.
    let status = child.wait().ok()?;
    (read.is_ok() && (status.success() || bytes.len() as u64 == LONGEST)).then_some(bytes)
}
