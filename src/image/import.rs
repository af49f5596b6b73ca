//! `apppot image import`.

use std::io::{self, IsTerminal, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use anyhow::{Context, Result};
use apppot_image::oci::{Blobs, Image, Platform, Registry};
use apppot_image::{Archive, Filesystem, Limits};
use apppot_snapshot::tree::Directory;
use serde_json::json;

use super::args::ImportArgs;
use super::make::New;
use super::source::Source;
use super::{workload, ORIGIN};
use crate::cli::General;
use crate::failure::hinted;
use crate::snap::images::Appliance;

/// Makes an image.
pub(super) fn import(args: &ImportArgs, general: &General) -> Result<()> {
    let input = Source::path(&args.source);
    let new = New::begin(&args.image, &args.make, input.as_deref().as_slice())?;
    let cannot = || format!("cannot import '{}'", args.source);
    let source = Source::find(&args.source, new.room(), args.max_size.0).with_context(cannot)?;
    let limits = Limits {
        bytes: args.max_size.0,
        ..Limits::default()
    };
    let progress = Progress::new(general);
    let filled = new.fill(None, limits, |filesystem| {
        add(filesystem, source, args, &progress)
    });
    let summary = filled.with_context(cannot)?;
    drop(progress);
    new.keep(&summary, general)
}

/// Adds what is in the source.
fn add(
    filesystem: &mut Filesystem,
    source: Source,
    args: &ImportArgs,
    progress: &Progress,
) -> Result<()> {
    let platform = platform(args)?;
    match source {
        Source::Directory(path) => filesystem.add_tree(&Directory::open(&path, false)?)?,
        Source::Image(path) => filesystem.add_tree(Appliance::open(&path, None)?.tree.as_ref())?,
        Source::Tar(inner) => {
            let reader = Counted {
                inner,
                progress: progress.report(),
            };
            filesystem.add_tar(reader, Archive::Plain)?;
        }
        Source::Archive(archive, tag) => {
            let (image, blobs) = archive.find(tag.as_deref(), &platform)?;
            add_image(filesystem, &image, &blobs, args, progress)?;
        }
        Source::Layout(layout, tag) => {
            let image = layout.find(tag.as_deref(), &platform)?;
            add_image(filesystem, &image, &layout, args, progress)?;
        }
        Source::Registry(reference) => {
            let registry = Registry::new(reference, args.plain_http);
            let image = registry.find(&platform)?;
            add_image(filesystem, &image, &registry, args, progress)?;
        }
    }
    Ok(())
}

fn platform(args: &ImportArgs) -> Result<Platform> {
    let Some(text) = &args.platform else {
        return Ok(Platform::default());
    };
    let (os, architecture) = text
        .split_once('/')
        .ok_or_else(|| hinted(format!("'{text}' is no platform"), "write linux/amd64"))?;
    Ok(Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
    })
}

/// Adds a container image, what runs in it, and where it comes from.
fn add_image(
    filesystem: &mut Filesystem,
    image: &Image,
    blobs: &dyn Blobs,
    args: &ImportArgs,
    progress: &Progress,
) -> Result<()> {
    image.add_to(filesystem, blobs, &progress.report())?;
    let process = image.config.process();
    if let Some(document) = workload::document(&process)? {
        filesystem.add_file(workload::PATH, 0o644, document.as_bytes())?;
    }
    let origin = json!({
        "source": args.source,
        "digest": image.digest.as_ref().map(ToString::to_string),
        "created": image.config.created,
        "platform": format!("{}/{}", image.config.os, image.config.architecture),
        "labels": process.labels(),
    });
    let text = format!("{origin:#}\n");
    filesystem.add_file(ORIGIN, 0o644, text.as_bytes())?;
    Ok(())
}

type Report = Arc<dyn Fn(u64) + Send + Sync>;

/// How much has been read, for somebody who watches.
struct Progress {
    report: Report,
    shows: bool,
}

impl Progress {
    fn new(general: &General) -> Self {
        let shows = io::stderr().is_terminal() && !general.quiet && !general.json;
        let done = AtomicU64::new(0);
        let report = move |bytes: u64| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            if shows && (before >> 22) != ((before + bytes) >> 22) {
                eprint!("\rread {} MiB", (before + bytes) >> 20);
            }
        };
        Progress {
            report: Arc::new(report),
            shows,
        }
    }

    fn report(&self) -> Report {
        self.report.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shows {
            eprint!("\r\x1b[K");
        }
    }
}

struct Counted {
    inner: Box<dyn Read + Send>,
    progress: Report,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        (self.progress)(len as u64);
        Ok(len)
    }
}
