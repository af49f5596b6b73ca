//! What an image is made of.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_image::decompress::{self, Compression};
use apppot_image::oci::{Archive, Layout, Reference};

use super::store;
use crate::failure::hinted;

/// A source that has been looked at.
pub(super) enum Source {
    /// A directory with a root filesystem.
    Directory(PathBuf),
    /// An image of ours.
    Image(PathBuf),
    /// A tar archive of one, decompressed.
    Tar(Box<dyn Read + Send>),
    /// Container images in a tar archive, and the tag.
    Archive(Archive, Option<String>),
    /// Container images in a directory, and the tag.
    Layout(Layout, Option<String>),
    /// An image in a registry.
    Registry(Reference),
}

/// What says that an image is in a registry.
const REGISTRY: &str = "docker://";
/// What says of a path that it holds container images.
const PREFIXES: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

impl Source {
    /// The file or directory that the user names, if it is none of another machine's.
    pub(super) fn path(text: &str) -> Option<PathBuf> {
        if text.starts_with(REGISTRY) {
            return None;
        }
        let rest = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix));
        Some(match rest {
            Some(rest) => tagged(rest).0,
            None => store::resolve(Path::new(text)),
        })
    }

    /// Looks at what the user names. `room` is a directory for unpacked archives, each of `most` bytes.
    pub(super) fn find(text: &str, room: &Path, most: u64) -> Result<Self> {
        if let Some(name) = text.strip_prefix(REGISTRY) {
            return Ok(Source::Registry(Reference::parse(name)?));
        }
        for prefix in PREFIXES {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (path, tag) = tagged(rest);
                return match Self::look(&path, tag, room, most)? {
                    Source::Directory(_) | Source::Image(_) | Source::Tar(_) => {
                        anyhow::bail!("'{}' holds no container image", path.display())
                    }
                    found => Ok(found),
                };
            }
        }
        let path = store::resolve(Path::new(text));
        if path.symlink_metadata().is_err() && Reference::parse(text).is_ok() {
            return Err(hinted(
                format!("there is no '{text}' here"),
                format!("for an image in a registry: docker://{text}"),
            ));
        }
        Self::look(&path, None, room, most)
    }

    fn look(path: &Path, tag: Option<String>, room: &Path, most: u64) -> Result<Self> {
        let cannot = || format!("cannot read '{}'", path.display());
        if std::fs::metadata(path).with_context(cannot)?.is_dir() {
            return Ok(match Layout::is_at(path) {
                true => Source::Layout(Layout::new(path), tag),
                false => Source::Directory(path.to_owned()),
            });
        }
        if apppot_backends::image::Image::open(path).is_ok() {
            return Ok(Source::Image(path.to_owned()));
        }
        let file = File::open(path).with_context(cannot)?;
        let again = file.try_clone().with_context(cannot)?;
        let (compression, mut reader) = decompress::open(file).with_context(cannot)?;
        let mut header = Vec::new();
        let first = reader.by_ref().take(512).read_to_end(&mut header);
        first.with_context(cannot)?;
        let end = header.iter().take(100).position(|byte| *byte == 0);
        let begins_so = Archive::may_begin_with(&header[..end.unwrap_or(header.len().min(100))]);
        let whole = Cursor::new(header).chain(reader);
        if !begins_so {
            return Ok(Source::Tar(Box::new(whole)));
        }
        // Members are read in another order than they come.
        let is_file = again.metadata().with_context(cannot)?.is_file();
        let unpacked = match compression {
            Compression::None if is_file => again,
            _ => unpack(whole, room, most).with_context(cannot)?,
        };
        let plain = unpacked.try_clone().with_context(cannot)?;
        Ok(match Archive::list(unpacked).with_context(cannot)? {
            Some(archive) => Source::Archive(archive, tag),
            None => Source::Tar(Box::new(rewound(plain).with_context(cannot)?)),
        })
    }
}

/// Writes an archive to a file without a name in `room`; no more than `most` bytes of it.
fn unpack(archive: impl Read, room: &Path, most: u64) -> Result<File> {
    let mut unpacked = tempfile::tempfile_in(room)?;
    let mut archive = archive.take(most.saturating_add(1));
    let failed = || format!("cannot unpack it in '{}'", room.display());
    if std::io::copy(&mut archive, &mut unpacked).with_context(failed)? > most {
        let reason = format!("unpacked it has more than {most} bytes");
        return Err(apppot_image::Error::Limit(reason).into());
    }
    Ok(unpacked)
}

fn rewound(mut file: File) -> std::io::Result<File> {
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}

/// `PATH[:TAG]`; a path that exists may have colons.
fn tagged(text: &str) -> (PathBuf, Option<String>) {
    if Path::new(text).exists() {
        return (PathBuf::from(text), None);
    }
    // A tag may have a colon, too: that of 'docker save' is NAME:TAG.
    let whole = |at: usize| Path::new(&text[..at]).exists();
    let colons = text.match_indices(':').map(|(at, _)| at);
    match colons.into_iter().find(|at| whole(*at)) {
        Some(at) => (PathBuf::from(&text[..at]), Some(text[at + 1..].to_owned())),
        None => (PathBuf::from(text), None),
    }
}
