//! `apppot image info` and `list`.

use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use apppot_backends::image::{Image, ImageKind};
use apppot_image::oci::Digest;
use apppot_image::Facts;
use serde_json::{json, Map, Value};

use super::inside::Inside;
use super::store;
use crate::cli::General;
use crate::failure::print_out;

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
            Value::String(text) if text.is_empty() => continue,
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

/// What `--layout` calls it.
fn layout(kind: ImageKind) -> Option<&'static str> {
    match kind {
        ImageKind::Partition | ImageKind::ReadOnly => Some("partition"),
        ImageKind::Disk => Some("disk"),
        ImageKind::Directory => None,
    }
}

fn gather(image: &Image) -> Result<Map<String, Value>> {
    let mut facts = Map::new();
    let mut fact = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    fact("path", json!(image.path));
    fact("kind", json!(image.kind.to_string()));
    fact("layout", json!(layout(image.kind)));
    fact("filesystem", json!(image.filesystem));
    let cannot = || format!("cannot read '{}'", image.path.display());
    let inside = Inside::open(image).with_context(cannot)?;
    if let Some(inside) = &inside {
        let agent = inside.agent().filter(|_| image.kind == ImageKind::Disk);
        fact("agent", json!(agent));
        fact("os", json!(inside.os()));
        fact("command", json!(inside.command()));
        let origin = inside.origin();
        for (name, key) in [
            ("source", "source"),
            ("source-digest", "digest"),
            ("created", "created"),
            ("platform", "platform"),
            ("labels", "labels"),
        ] {
            fact(name, origin.get(key).cloned().unwrap_or(Value::Null));
        }
    }
    if image.kind == ImageKind::Directory {
        return Ok(facts);
    }
    let file = File::open(&image.path).with_context(cannot)?;
    let metadata = file.metadata().with_context(cannot)?;
    fact("size", json!(metadata.len()));
    fact("on-disk", json!(metadata.blocks() * 512));
    let filesystem = image.filesystem.unwrap_or_default();
    let found = Facts::read(&file, image.start, filesystem).with_context(cannot)?;
    fact("used", json!(found.used));
    fact("label", json!(found.label));
    fact("uuid", json!(found.uuid));
    let files = inside.and_then(|inside| inside.files).or(found.inodes);
    fact("files", json!(files.map(|files| files.to_string())));
    let digest = Digest::of_stream(&mut &file).with_context(cannot)?;
    fact("sha256", json!(digest.hex()));
    Ok(facts)
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
