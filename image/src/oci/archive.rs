//! Container images in a tar file: what `docker save` writes, and OCI layouts that were packed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::Deserialize;

use super::{layout, Blobs, Descriptor, Digest, Image, Platform, LONGEST};
use crate::error::shown;
use crate::tar::{self, Kind};
use crate::{Error, Result};

/// Where a member's content is in the file, or which member it is a link to.
#[derive(Debug, Clone)]
enum Place {
    Content { offset: u64, size: u64 },
    Link(String),
}

/// A tar file whose members have been listed.
#[derive(Debug)]
pub struct Archive {
    file: Arc<File>,
    places: HashMap<String, Place>,
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

const MANIFEST: &str = "manifest.json";
const INDEX: &str = "index.json";
/// Most members of an archive of images.
const MOST: usize = 100_000;

impl Archive {
    /// Whether an archive whose first member has that name may hold container images.
    #[must_use]
    pub fn may_begin_with(name: &[u8]) -> bool {
        let Ok(name) = std::str::from_utf8(name) else {
            return false;
        };
        let name = name.strip_prefix("./").unwrap_or(name);
        let first = name.split(['/', '.']).next().unwrap_or_default();
        let is_hash = first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash
            || first == "blobs"
            || [MANIFEST, INDEX, "oci-layout", "repositories"].contains(&name)
    }

    /// Lists a tar file, not compressed. `None` when it holds no container image.
    ///
    /// # Errors
    /// It cannot be read or is malformed.
    pub fn list(file: File) -> Result<Option<Self>> {
        let reading = || Error::io("read the archive");
        let mut file = file;
        file.seek(SeekFrom::Start(0)).map_err(reading())?;
        let input = Counting {
            inner: BufReader::with_capacity(1 << 16, file.try_clone().map_err(reading())?),
            position: 0,
        };
        let mut reader = tar::Reader::new(input, false);
        let mut places = HashMap::new();
        while let Some(member) = reader.next_member()? {
            let path = plain(&String::from_utf8_lossy(&member.path));
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            let place = match member.kind {
                Kind::File if member.runs.is_none() => Place::Content {
                    offset: reader.get_ref().position,
                    size: member.size,
                },
                Kind::Link(target) => Place::Link(plain(&String::from_utf8_lossy(&target))),
                Kind::Symlink(target) => Place::Link(plain(&format!(
                    "{directory}/{}",
                    String::from_utf8_lossy(&target)
                ))),
                _ => continue,
            };
            places.insert(path, place);
            if places.len() > MOST {
                return Ok(None);
            }
        }
        let holds = places.contains_key(MANIFEST) || places.contains_key(INDEX);
        Ok(holds.then_some(Archive {
            file: Arc::new(file),
            places,
        }))
    }

    /// The image of that tag, or the only one, and where its blobs are.
    ///
    /// # Errors
    /// There is none, or it is malformed.
    pub fn find(&self, tag: Option<&str>, platform: &Platform) -> Result<(Image, Found<'_>)> {
        if !self.places.contains_key(MANIFEST) {
            let found = Found {
                archive: self,
                names: HashMap::new(),
            };
            let index = self.document(INDEX)?;
            return Ok((layout::choose(&found, &index, tag, platform)?, found));
        }
        let saved: Vec<Saved> = serde_json::from_slice(&self.document(MANIFEST)?)
            .map_err(|error| Error::Container(format!("{MANIFEST} is malformed: {error}")))?;
        let saved = choose(&saved, tag)?;
        let config = self.document(&saved.config)?;
        // The name is the digest, if it is one.
        let named = saved.config.rsplit('/').next().unwrap_or_default();
        let named = named.strip_suffix(".json").unwrap_or(named);
        if let Ok(digest) = Digest::try_from(format!("sha256:{named}")) {
            digest.check("the configuration", &config)?;
        }
        let diff_ids = super::Config::parse(&config)?.rootfs.diff_ids;
        let mut names = HashMap::new();
        let mut layers = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(&diff_ids) {
            let (_, size) = self.content(name)?;
            layers.push(Descriptor::new(diff_id.clone(), size));
            names.insert(diff_id.clone(), name.clone());
        }
        if saved.layers.len() != diff_ids.len() {
            let what = format!("{MANIFEST} and the configuration differ in the number of layers");
            return Err(Error::Container(what));
        }
        let image = Image::new(None, &config, layers)?;
        Ok((
            image,
            Found {
                archive: self,
                names,
            },
        ))
    }

    /// Where a member's content is: offset and length.
    fn content(&self, name: &str) -> Result<(u64, u64)> {
        let mut path = plain(name);
        // Old versions of Docker save equal layers once, and links to them.
        for _ in 0..8 {
            match self.places.get(&path) {
                Some(Place::Content { offset, size }) => return Ok((*offset, *size)),
                Some(Place::Link(target)) => path.clone_from(target),
                None => break,
            }
        }
        Err(Error::Container(format!(
            "'{}' is missing in the archive",
            shown(name.as_bytes())
        )))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (offset, size) = self.content(name)?;
        if size > LONGEST {
            return Err(Error::Limit(format!(
                "'{}' of {size} bytes",
                shown(name.as_bytes())
            )));
        }
        let mut bytes = vec![0; size as usize];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(Error::io("read the archive"))?;
        Ok(bytes)
    }
}

fn choose<'a>(saved: &'a [Saved], tag: Option<&str>) -> Result<&'a Saved> {
    let tags = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
    let all: Vec<String> = saved.iter().flat_map(tags).collect();
    let all = shown(all.join(", ").as_bytes());
    match (tag, saved) {
        (None, [only]) => Ok(only),
        (None, []) => Err(Error::Container(format!("{MANIFEST} lists no images"))),
        (None, _) => Err(Error::Container(format!(
            "it holds several images, name one: {all}"
        ))),
        (Some(tag), _) => {
            let found = saved
                .iter()
                .find(|one| tags(one).iter().any(|other| other == tag));
            found.ok_or_else(|| {
                Error::Container(format!("there is no image '{tag}' in it, only: {all}"))
            })
        }
    }
}

/// A path in the archive without `.` and `..`; it is a name, and leads nowhere.
fn plain(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

/// The blobs of an image that has been found.
#[derive(Debug)]
pub struct Found<'a> {
    archive: &'a Archive,
    /// Members that hold layers, for archives that do not name them by their digests.
    names: HashMap<Digest, String>,
}

impl Blobs for Found<'_> {
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let (offset, size) = match self.names.get(&blob.digest) {
            Some(name) => self.archive.content(name)?,
            None => self
                .archive
                .content(&format!("blobs/sha256/{}", blob.digest.hex()))?,
        };
        Ok(Box::new(Part {
            file: self.archive.file.clone(),
            offset,
            left: size,
        }))
    }
}

/// A part of a file.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let len = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}

/// Knows how far it has been read.
struct Counting<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.position += len as u64;
        Ok(len)
    }
}
