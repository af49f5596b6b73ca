//! OCI image layouts: a directory with an index and blobs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::documents::Index;
use super::{Blobs, Descriptor, Digest, Image, Platform, LONGEST};
use crate::{Error, Result};

/// The annotation that holds an image's tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// A directory that holds images.
#[derive(Debug)]
pub struct Layout(PathBuf);

impl Layout {
    /// The layout in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Layout(directory.to_owned())
    }

    /// Whether the directory is a layout.
    #[must_use]
    pub fn is_at(directory: &Path) -> bool {
        directory.join("oci-layout").is_file() && directory.join("index.json").is_file()
    }

    /// The image of that tag, or the only one.
    ///
    /// # Errors
    /// There is none, or it is malformed.
    pub fn find(&self, tag: Option<&str>, platform: &Platform) -> Result<Image> {
        let path = self.0.join("index.json");
        let mut index = Vec::new();
        let opened = File::open(&path).and_then(|file| file.take(LONGEST).read_to_end(&mut index));
        opened.map_err(Error::io(format!("read '{}'", path.display())))?;
        choose(self, &index, tag, platform)
    }
}

/// The image of that tag in a layout's index, or the only one.
pub(super) fn choose(
    blobs: &dyn Blobs,
    index: &[u8],
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Image> {
    let nothing = || Error::Container(String::from("its index lists no images"));
    let parsed = Index::parse(index)?.ok_or_else(nothing)?;
    let name = |one: &Descriptor| one.annotations.get(TAG).cloned();
    let tags = || {
        let names: Vec<String> = parsed.manifests.iter().filter_map(name).collect();
        crate::error::shown(names.join(", ").as_bytes())
    };
    let chosen = match tag {
        Some(tag) => {
            let mut all = parsed.manifests.iter();
            let found = all.find(|one| name(one).as_deref() == Some(tag));
            found.ok_or_else(|| {
                Error::Container(format!("there is no image '{tag}' in it, only: {}", tags()))
            })?
        }
        None => match &parsed.manifests[..] {
            [] => return Err(nothing()),
            [only] => only,
            _ => {
                // Several platforms of one image are one image.
                let digest = Digest::of(index);
                return Image::find(blobs, index, &digest, platform).map_err(|error| {
                    match tags() {
                        tags if tags.is_empty() => error,
                        tags => {
                            Error::Container(format!("it holds several images, name one: {tags}"))
                        }
                    }
                });
            }
        },
    };
    let document = super::read(blobs, "the manifest", chosen)?;
    Image::find(blobs, &document, &chosen.digest, platform)
}

impl Blobs for Layout {
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let path = self.0.join("blobs/sha256").join(blob.digest.hex());
        let file = File::open(&path).map_err(Error::io(format!("open '{}'", path.display())))?;
        Ok(Box::new(file))
    }
}
