//! The store: images that are known by name.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::args::Format;
use crate::failure::hinted;

/// Endings of images' files.
const ENDINGS: [&str; 4] = ["img", "raw", "squashfs", "erofs"];

/// Where the store is: `$XDG_DATA_HOME/apppot/images`.
pub(crate) fn directory() -> Result<PathBuf> {
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .map(|data| data.join("apppot/images"))
        .ok_or_else(|| {
            hinted(
                "there is no place for the store",
                "set HOME or XDG_DATA_HOME",
            )
        })
}

/// Whether the word is a name in the store rather than a path.
pub(crate) fn is_name(word: &Path) -> bool {
    let Some(text) = word.to_str() else {
        return false;
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let ending = word.extension().and_then(|ending| ending.to_str());
    text.chars().all(allowed)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

/// The image that a name stands for, if the store has it.
pub(crate) fn find(name: &Path) -> Option<PathBuf> {
    let name = Some(name).filter(|name| is_name(name))?.to_str()?;
    let directory = directory().ok()?;
    let paths = ENDINGS.map(|ending| directory.join(format!("{name}.{ending}")));
    paths.into_iter().find(|path| path.is_file())
}

/// The image that the user means: a path that exists, else a name in the store.
pub(crate) fn resolve(word: &Path) -> PathBuf {
    match word.symlink_metadata() {
        Ok(_) => word.to_owned(),
        Err(_) => find(word).unwrap_or_else(|| word.to_owned()),
    }
}

/// Where a new image goes.
pub(crate) fn target(word: &Path, format: Format) -> Result<PathBuf> {
    if !is_name(word) {
        return Ok(word.to_owned());
    }
    let ending = match format {
        Format::Ext4 => "img",
        Format::Squashfs => "squashfs",
    };
    Ok(directory()?.join(format!("{}.{ending}", word.display())))
}

/// Fails when a file of that name would be taken for one of another format.
pub(crate) fn check_ending(word: &Path, format: Format) -> Result<()> {
    let ending = word.extension().and_then(|ending| ending.to_str());
    let remedy = match (ending, format) {
        (Some("squashfs"), Format::Ext4) => "--format squashfs makes one",
        (Some("erofs"), _) => "the formats are ext4 and squashfs",
        _ => return Ok(()),
    };
    let name = word.display();
    Err(hinted(format!("'{name}' would be no such image"), remedy))
}

/// All images, sorted by name.
pub(crate) fn list() -> Result<Vec<(String, PathBuf)>> {
    let mut images = Vec::new();
    let directory = directory()?;
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(images),
        Err(error) => {
            let what = format!("cannot list '{}'", directory.display());
            return Err(anyhow::Error::new(error).context(what));
        }
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let stem = path.file_stem().map(Path::new);
        if let (Some(ending), Some(stem)) = (ending, stem) {
            if ENDINGS.contains(&ending) && is_name(stem) {
                images.push((stem.display().to_string(), path.clone()));
            }
        }
    }
    images.sort();
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_names_or_paths() {
        for (word, name) in [
            ("debian", true),
            ("debian-12.5", true),
            ("a+b_c", true),
            ("debian.img", false),
            ("x.squashfs", false),
            ("./debian", false),
            ("a/b", false),
            ("..", false),
            (".hidden", false),
            ("-x", false),
            ("", false),
        ] {
            assert_eq!(is_name(Path::new(word)), name, "{word}");
        }
    }
}
