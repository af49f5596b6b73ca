//! Container images (OCI image specification 1.1, Docker image manifest version 2): what describes them,
//! where they are, and their layers as a filesystem. Everything is verified: what is named by a digest,
//! and decompressed layers by the identifiers in the image's configuration.

mod archive;
mod digest;
mod documents;
mod layout;
mod registry;

use std::io::{self, Read};

pub use archive::Archive;
pub use digest::Digest;
pub use documents::{Config, Descriptor, Process};
pub use layout::Layout;
pub use registry::{Reference, Registry};

use crate::{decompress, pipe, Error, Filesystem, Result};
use digest::Verified;
use documents::{Index, Manifest};

/// Longest document: manifests and configurations.
const LONGEST: u64 = 8 << 20;

/// A place where blobs are found by their digest. What it gives is not trusted.
pub trait Blobs {
    /// Opens a blob.
    ///
    /// # Errors
    /// There is none, or it cannot be reached.
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>>;
}

/// An image that has been found; its layers have not been read.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its manifest, if it has one.
    pub digest: Option<Digest>,
    /// Its configuration.
    pub config: Config,
    /// Its layers, the lowest first.
    layers: Vec<Descriptor>,
}

/// The platform that is wanted, such as `linux/amd64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture, as Go names it.
    pub architecture: String,
}

impl Default for Platform {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            os: String::from("linux"),
            architecture: architecture.to_owned(),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Image {
    /// The image whose manifest, or index of manifests, is `document`, named by `digest`.
    ///
    /// # Errors
    /// A document is malformed or not what its digest stands for, or there is no image for the platform.
    pub fn find(
        blobs: &dyn Blobs,
        document: &[u8],
        digest: &Digest,
        platform: &Platform,
    ) -> Result<Self> {
        let (mut document, mut digest) = (document.to_owned(), digest.clone());
        // An index may be in an index; no image needs more.
        for _ in 0..4 {
            digest.check("the manifest", &document)?;
            let Some(index) = Index::parse(&document)? else {
                let manifest = Manifest::parse(&document)?;
                let config = read(blobs, "the configuration", &manifest.config)?;
                return Self::new(Some(digest), &config, manifest.layers);
            };
            let chosen = index.choose(platform)?;
            document = read(blobs, "the manifest", &chosen)?;
            digest = chosen.digest;
        }
        Err(Error::Container(String::from(
            "its indexes are nested too deeply",
        )))
    }

    fn new(digest: Option<Digest>, config: &[u8], layers: Vec<Descriptor>) -> Result<Self> {
        let config = Config::parse(config)?;
        if config.rootfs.diff_ids.len() != layers.len() {
            return Err(Error::Container(format!(
                "it has {} layers, and its configuration {} identifiers of layers",
                layers.len(),
                config.rootfs.diff_ids.len()
            )));
        }
        Ok(Image {
            digest,
            config,
            layers,
        })
    }

    /// Bytes of the layers as they are stored.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// Adds the layers to a filesystem. `progress` is told how many bytes have come.
    ///
    /// # Errors
    /// A layer cannot be read, is not what its digests stand for, or cannot be taken.
    pub fn add_to(
        &self,
        filesystem: &mut Filesystem,
        blobs: &dyn Blobs,
        progress: &std::sync::Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<()> {
        for (layer, diff_id) in self.layers.iter().zip(&self.config.rootfs.diff_ids) {
            add_layer(filesystem, blobs, layer, diff_id, progress)?;
        }
        Ok(())
    }
}

fn add_layer(
    filesystem: &mut Filesystem,
    blobs: &dyn Blobs,
    layer: &Descriptor,
    diff_id: &Digest,
    progress: &std::sync::Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<()> {
    let opening = || Error::io(format!("read layer {}", layer.digest));
    let stored = Counted {
        inner: blobs.open(layer)?,
        progress: progress.clone(),
    };
    // What is not compressed is verified once, as what it is unpacked.
    let stored: Box<dyn Read + Send> = match layer.digest == *diff_id {
        true => Box::new(stored),
        false => {
            let (digest, size) = (layer.digest.clone(), Some(layer.size));
            Box::new(Verified::new(stored, "a layer", digest, size))
        }
    };
    let (_, unpacked) = decompress::open(stored).map_err(opening())?;
    let unpacked = Verified::new(unpacked, "an unpacked layer", diff_id.clone(), None);
    let mut unpacked = pipe::ahead(Box::new(unpacked)).map_err(opening())?;
    let added = filesystem.add_tar(&mut unpacked, crate::Archive::Layer);
    added.map_err(told)?;
    // What comes after the archive's end counts for the digest, too.
    io::copy(&mut unpacked, &mut io::sink())
        .map_err(opening())
        .map_err(told)?;
    Ok(())
}

/// A wrong digest is found while a layer is read, and travels as an I/O error.
fn told(error: Error) -> Error {
    match error {
        Error::Io { what, source } => match source.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Error::Io { what, source },
        },
        error => error,
    }
}

/// Reads a document and verifies it.
fn read(blobs: &dyn Blobs, what: &str, blob: &Descriptor) -> Result<Vec<u8>> {
    if blob.size > LONGEST {
        return Err(Error::Limit(format!("{what} of {} bytes", blob.size)));
    }
    let mut bytes = Vec::new();
    let reader = blobs.open(blob)?.take(LONGEST);
    { reader }
        .read_to_end(&mut bytes)
        .map_err(Error::io(format!("read {what}")))?;
    blob.digest.check(what, &bytes)?;
    Ok(bytes)
}

struct Counted {
    inner: Box<dyn Read + Send>,
    progress: std::sync::Arc<dyn Fn(u64) + Send + Sync>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        (self.progress)(len as u64);
        Ok(len)
    }
}
