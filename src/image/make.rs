//! A new image: its place, its format, and what is told of it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_image::{layout, Filesystem, Limits, Options, Summary};
use serde_json::json;

use super::args::{Format, Layout, MakeArgs};
use super::{boot, squashfs, store};
use crate::cli::General;
use crate::failure::{hinted, say, warn};
use crate::output::Output;

/// An image in the making.
pub(super) struct New<'a> {
    args: &'a MakeArgs,
    target: PathBuf,
    output: Output,
}

impl<'a> New<'a> {
    /// Begins the image that `word` names: a path, or a name in the store. It is made of `inputs`.
    pub(super) fn begin(word: &Path, args: &'a MakeArgs, inputs: &[&Path]) -> Result<Self> {
        if args.format == Format::Squashfs {
            if args.size.is_some() {
                return Err(hinted(
                    "a squashfs image has no size of its own",
                    "leave out --size",
                ));
            }
            squashfs::check()?;
        }
        if args.layout == Layout::Disk {
            if args.format != Format::Ext4 {
                return Err(hinted("a disk's root is ext4", "leave out --format"));
            }
            boot::check()?;
        }
        store::check_ending(word, args.format)?;
        let target = store::target(word, args.format)?;
        if store::is_name(word) {
            let directory = store::directory()?;
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make '{}'", directory.display()))?;
        }
        let output = match args.force {
            true => Output::begin(&target, inputs)?,
            false => Output::begin_new(&target, inputs)?,
        };
        Ok(New {
            args,
            target,
            output,
        })
    }

    /// The directory that it will be in, which has room for what is needed on the way.
    pub(super) fn room(&self) -> &Path {
        let room = self.target.parent();
        room.filter(|room| !room.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
    }

    /// A file that nobody else sees, in the same place.
    pub(super) fn scratch(&self) -> Result<File> {
        tempfile::tempfile_in(self.room()).context("cannot make a temporary file")
    }

    /// Makes the filesystem of what `add` adds. `size` counts when no option says another.
    pub(super) fn fill(
        &self,
        size: Option<u64>,
        limits: Limits,
        add: impl FnOnce(&mut Filesystem) -> Result<()>,
    ) -> Result<Summary> {
        let raw = match self.args.format {
            Format::Ext4 => self.output.file().try_clone()?,
            Format::Squashfs => self.scratch()?,
        };
        let options = Options {
            size: self.args.size.map(|size| size.0).or(size),
            label: String::from("apppot"),
            limits,
            start: match self.args.layout {
                Layout::Partition => 0,
                Layout::Disk => layout::ROOT,
            },
        };
        let mut filesystem = Filesystem::new(raw.try_clone()?, options)?;
        add(&mut filesystem)?;
        if self.args.layout == Layout::Disk {
            boot::prepare(&mut filesystem)?;
        }
        let summary = filesystem.finish()?;
        if self.args.layout == Layout::Disk {
            boot::complete(&raw, &summary)?;
        }
        if self.args.format == Format::Squashfs {
            squashfs::pack(raw, &self.output)?;
        }
        Ok(summary)
    }

    /// Gives the image its name, and tells of it.
    pub(super) fn keep(self, summary: &Summary, general: &General) -> Result<()> {
        let target = self.target;
        self.output.keep()?;
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
}
