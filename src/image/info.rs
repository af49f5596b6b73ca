//! `apppot image info` and `list`.

use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use apppot_backends::image::{Image, ImageKind};
use apppot_image::oci::Digest;
use apppot_image::Facts;
use apppot_snapshot::entry::Kind;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Ext4, Found, Tree};
use serde_json::{json, Map, Value};

use super::store;
use crate::cli::General;
use crate::failure::print_out;

/// Longest file that is shown a part of.
const LONGEST: u64 = 1 << 20;

/// Shows what an image is.
pub(super) fn info(word: &Path, general: &General) -> Result<()> {
    let image = Image::open(&store::resolve(word))?;
    let facts = gather(&image)?;
    if general.json {
        print_out(&format!("{:#}\n", Value::Object(facts)));
        return Ok(());
    }
    let widest = facts.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in &facts {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Number(bytes) => mebibytes(bytes.as_u64().unwrap_or(0)),
            Value::Object(map) if map.is_empty() => continue,
            Value::Object(map) => {
                let pairs = map
                    .iter()
                    .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()));
                pairs.collect::<Vec<_>>().join(" ")
            }
            Value::Array(words) => {
                let words = words.iter().filter_map(Value::as_str);
                words.collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        };
        print_out(&format!("{name:<widest$}  {}\n", printable(&text)));
    }
    Ok(())
}

/// What comes from an image is shown without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn gather(image: &Image) -> Result<Map<String, Value>> {
    let mut facts = Map::new();
    let mut fact = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    fact("path", json!(image.path));
    fact("kind", json!(image.kind.to_string()));
    fact("filesystem", json!(image.filesystem));
    if image.kind == ImageKind::Directory {
        return Ok(facts);
    }
    let cannot = || format!("cannot read '{}'", image.path.display());
    let file = File::open(&image.path).with_context(cannot)?;
    let metadata = file.metadata().with_context(cannot)?;
    fact("size", json!(metadata.len()));
    fact("on-disk", json!(metadata.blocks() * 512));
    if image.filesystem == Some("ext4") {
        let found = Facts::read(&file, image.start).with_context(cannot)?;
        fact("used", json!(found.size - found.free.min(found.size)));
        fact("label", json!(found.label));
        fact("uuid", json!(found.uuid));
        let inside = Inside::open(image).with_context(cannot)?;
        fact("files", json!(inside.files().to_string()));
        fact("os", json!(inside.os()));
        fact("command", json!(inside.command()));
        let origin = inside.origin();
        for name in ["source", "digest", "created", "platform", "labels"] {
            fact(name, origin.get(name).cloned().unwrap_or(Value::Null));
        }
    }
    let digest = Digest::of_stream(&mut &file).with_context(cannot)?;
    fact("sha256", json!(digest.hex()));
    Ok(facts)
}

/// The files of an image.
struct Inside {
    tree: Ext4,
    found: Vec<Found>,
}

impl Inside {
    fn open(image: &Image) -> Result<Self> {
        let tree = Ext4::open(Box::new(File::open(&image.path)?), image.start)?;
        let found = tree.walk(&Rules::everything())?.found;
        Ok(Inside { tree, found })
    }

    fn files(&self) -> usize {
        self.found.len()
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        let mut all = self.found.iter();
        let found = all.find(|found| found.entry.path == path.as_bytes())?;
        let Kind::File(file) = &found.entry.kind else {
            return None;
        };
        let mut bytes = vec![0; file.size.min(LONGEST) as usize];
        self.tree.open(found).ok()?.read_at(&mut bytes, 0).ok()?;
        Some(bytes)
    }

    /// The name of the distribution (os-release(5)).
    fn os(&self) -> Option<String> {
        let text = self
            .read("usr/lib/os-release")
            .or_else(|| self.read("etc/os-release"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches(['"', '\'']).to_owned())
    }

    fn origin(&self) -> Value {
        let text = self.read(super::ORIGIN).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    }

    /// What runs when nobody says what.
    fn command(&self) -> Option<Vec<String>> {
        if self
            .found
            .iter()
            .any(|found| found.entry.path == b"etc/apppot/autorun")
        {
            return Some(vec![String::from("/etc/apppot/autorun")]);
        }
        let contract =
            apppot_contract::document::decode(&self.read(super::workload::PATH)?).ok()?;
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

/// Lists the store.
pub(super) fn list(general: &General) -> Result<()> {
    let images = store::list()?;
    let size =
        |path: &Path| std::fs::metadata(path).map_or((0, 0), |m| (m.len(), m.blocks() * 512));
    if general.json {
        let all = images.iter().map(|(name, path)| {
            let (size, on_disk) = size(path);
            json!({ "name": name, "path": path, "size": size, "on-disk": on_disk })
        });
        print_out(&format!("{:#}\n", Value::Array(all.collect())));
        return Ok(());
    }
    let widest = images
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    if std::io::stdout().is_terminal() && !images.is_empty() {
        print_out(&format!(
            "{:<widest$}  {:>12}  {:>12}\n",
            "name", "size", "on disk"
        ));
    }
    for (name, path) in &images {
        let (size, on_disk) = size(path);
        print_out(&format!(
            "{name:<widest$}  {:>12}  {:>12}\n",
            mebibytes(size),
            mebibytes(on_disk)
        ));
    }
    Ok(())
}
