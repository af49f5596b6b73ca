//! `apppot image import`.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use anyhow::{Context, Result};
use apppot_image::oci::{Blobs, Image, Platform, Registry};
use apppot_image::{Archive, Filesystem, Limits, Options, Summary};
use apppot_snapshot::tree::Directory;
use serde_json::json;

use super::args::{Format, ImportArgs};
use super::output::Output;
use super::source::Source;
use super::{squashfs, store, workload};
use crate::cli::General;
use crate::failure::{hinted, say, warn};

/// Where an image says what it was made of.
const ORIGIN: &str = "etc/apppot/image.json";

/// Makes an image.
pub(super) fn import(args: &ImportArgs, general: &General) -> Result<()> {
    if args.format == Format::Squashfs {
        if args.size.is_some() {
            return Err(hinted(
                "a squashfs image has no size of its own",
                "leave out --size",
            ));
        }
        squashfs::check()?;
    }
    let target = store::target(&args.image, args.format)?;
    if store::is_name(&args.image) {
        let directory = store::directory()?;
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make '{}'", directory.display()))?;
    }
    let output = Output::create(&target, args.force)?;
    let cannot = || format!("cannot import '{}'", args.source);
    let room = target.parent().filter(|room| !room.as_os_str().is_empty());
    let room = room.unwrap_or(Path::new("."));
    let source = Source::find(&args.source, room).with_context(cannot)?;
    let summary = match args.format {
        Format::Ext4 => fill(output.file(), source, args, general).with_context(cannot)?,
        Format::Squashfs => {
            let raw = tempfile::tempfile_in(room).context("cannot make a temporary file")?;
            let summary = fill(&raw, source, args, general).with_context(cannot)?;
            squashfs::pack(raw, &output)?;
            summary
        }
    };
    output.keep()?;
    if summary.text_acls > 0 && !general.quiet {
        let count = summary.text_acls;
        warn(&format!(
            "{count} access control lists were left out: the archive has them as text"
        ));
    }
    let size = std::fs::metadata(&target).map_or(summary.size, |metadata| metadata.len());
    if general.json {
        let value = json!({
            "image": target, "size": size, "used": summary.used, "files": summary.files,
        });
        crate::failure::print_out(&format!("{value}\n"));
    } else if !general.quiet {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (files, used, size) = (summary.files, mib(summary.used), mib(size));
        say(&format!(
            "{}: {files} files, {used} MiB in {size} MiB",
            target.display()
        ));
    }
    Ok(())
}

/// Makes the filesystem.
fn fill(file: &File, source: Source, args: &ImportArgs, general: &General) -> Result<Summary> {
    let options = Options {
        size: args.size.map(|size| size.0),
        label: String::from("apppot"),
        limits: Limits {
            bytes: args.max_size.0,
            ..Limits::default()
        },
        ..Options::default()
    };
    let mut filesystem = Filesystem::new(file.try_clone()?, options)?;
    let progress = Progress::new(general);
    let platform = platform(args)?;
    match source {
        Source::Directory(path) => filesystem.add_tree(&Directory::open(&path, false)?)?,
        Source::Tar(inner) => {
            let reader = Counted {
                inner,
                progress: progress.report(),
            };
            filesystem.add_tar(reader, Archive::Plain)?;
        }
        Source::Archive(archive, tag) => {
            let (image, blobs) = archive.find(tag.as_deref(), &platform)?;
            add(&mut filesystem, &image, &blobs, args, &progress)?;
        }
        Source::Layout(layout, tag) => {
            let image = layout.find(tag.as_deref(), &platform)?;
            add(&mut filesystem, &image, &layout, args, &progress)?;
        }
        Source::Registry(reference) => {
            let registry = Registry::new(reference, args.plain_http);
            let image = registry.find(&platform)?;
            add(&mut filesystem, &image, &registry, args, &progress)?;
        }
    }
    Ok(filesystem.finish()?)
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
fn add(
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
