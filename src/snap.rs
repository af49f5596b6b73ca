//! `apppot snap`: what is in an appliance, and what changed in it, without booting it; and the
//! examination of archives that a job is to start with.

mod cache;
mod images;
mod report;

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use apppot_backends::image::Image;
use apppot_backends::spec::{Changes, Writes};
use apppot_snapshot::archive::{self, Archive, Manifest};
use apppot_snapshot::base::{identify, Base, Source};
use apppot_snapshot::diff::compare;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Listing, Tree};
use apppot_snapshot::{hex, Entry, Error};

use crate::cli::{ChangesArgs, General, SnapCommand, WhatChanged};
use crate::run;

/// Runs one of the commands.
///
/// # Errors
/// A file cannot be read or written, or is not what it should be.
pub(crate) fn run(command: &SnapCommand, general: &General) -> Result<u8> {
    match command {
        SnapCommand::Base {
            image,
            overlay,
            output,
        } => {
            let (_, listing) =
                images::record(image, overlay.as_deref(), &Rules::default(), general)?;
            let base = Base::new(entries(listing), Source::Image);
            write_whole(output, |file| Ok(base.write(file)?))?;
            report::base(&base, output, general);
        }
        SnapCommand::Changes(args) => changes(args, general)?,
        SnapCommand::Inspect { file } => {
            let archive = open(file)?;
            report::archive(&archive, general)?;
            let verified = archive.verify();
            verified.with_context(|| format!("cannot use '{}'", file.display()))?;
        }
        SnapCommand::Diff { what } => {
            let compared = Compared::new(what, general)?;
            let found = compare(&compared.base, &compared.listing, &compared.rules);
            report::changes(&Manifest::new(compared.base.identity, found), general)?;
        }
        SnapCommand::Commit {
            base,
            changes,
            output,
            changes_any_base,
        } => return commit(base, changes, output, *changes_any_base, general),
    }
    Ok(0)
}

fn entries(listing: Listing) -> Vec<Entry> {
    let found = listing.found.into_iter();
    found.map(|found| found.entry).collect()
}

/// An appliance and its base.
struct Compared {
    base: Base,
    tree: Box<dyn Tree>,
    listing: Listing,
    rules: Rules,
}

impl Compared {
    fn new(what: &WhatChanged, general: &General) -> Result<Self> {
        let rules = rules(what)?;
        let base = base(&what.base, general)?;
        let (tree, listing) =
            images::record(&what.image, what.overlay.as_deref(), &rules, general)?;
        Ok(Compared {
            base,
            tree,
            listing,
            rules,
        })
    }
}

fn changes(args: &ChangesArgs, general: &General) -> Result<()> {
    let compared = Compared::new(&args.what, general)?;
    let mut written = None;
    write_whole(&args.output, |file| {
        let Compared {
            base,
            tree,
            listing,
            rules,
        } = &compared;
        written = Some(archive::write(file, base, tree.as_ref(), listing, rules)?);
        Ok(())
    })?;
    if let Some(written) = &written {
        report::written(written, &args.output, general);
    }
    Ok(())
}

/// The default rules, those of the current directory, and those of the command line.
fn rules(what: &WhatChanged) -> Result<Rules> {
    const FILE: &str = ".apppotignore";
    let mut rules = Rules::default();
    match std::fs::read_to_string(FILE) {
        Ok(lines) => rules
            .add_lines(&lines)
            .context("cannot use '.apppotignore'")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("cannot read '.apppotignore'"),
    }
    for pattern in &what.exclude {
        rules.add(pattern)?;
    }
    for pattern in &what.include {
        rules.include(pattern)?;
    }
    Ok(rules)
}

/// A recorded base, or the base itself.
fn base(path: &Path, general: &General) -> Result<Base> {
    if path.is_file() && !images::is_image(path) {
        let file = File::open(path).with_context(|| format!("cannot open '{}'", path.display()))?;
        let base = Base::read(file);
        return base.with_context(|| {
            format!(
                "'{}' is neither an image nor a recorded base",
                path.display()
            )
        });
    }
    let (_, listing) = images::record(path, None, &Rules::default(), general)?;
    Ok(Base::new(entries(listing), Source::Image))
}

fn open(path: &Path) -> Result<Archive> {
    let file = File::open(path)
        .with_context(|| format!("cannot open changes archive '{}'", path.display()))?;
    let archive = Archive::open(file);
    archive.with_context(|| format!("cannot use changes archive '{}'", path.display()))
}

/// Examines the archives that a machine is to merge, while an error is still cheap.
///
/// # Errors
/// One is missing, truncated, damaged, or made for another base.
pub(crate) fn examine(
    paths: &[std::path::PathBuf],
    any_base: bool,
    image: &Image,
    writes: &Writes,
) -> Result<Vec<Changes>> {
    for (index, path) in paths.iter().enumerate() {
        let archive = open(path)?;
        // Later ones may be for what the first ones make; an image that is written into may hold
        // them already. The guest looks, too, at what an archive changes.
        if index == 0 && !any_base && *writes != Writes::Image {
            compare_base(&archive, image)
                .with_context(|| format!("cannot use changes archive '{}'", path.display()))?;
        }
    }
    let changes = paths.iter().map(|path| {
        // The machine's process may have another working directory.
        let real = std::fs::canonicalize(path);
        let path =
            real.with_context(|| format!("cannot open changes archive '{}'", path.display()))?;
        Ok(Changes { path, any_base })
    });
    changes.collect()
}

/// Compares everything that is known of the base but the contents of its files: they would have to
/// be read.
fn compare_base(archive: &Archive, image: &Image) -> Result<()> {
    let base = &archive.manifest.header.base;
    if base.source != Source::Image {
        return Ok(());
    }
    if !images::is_quick(image) {
        return Ok(());
    }
    let fingerprint = cache::fingerprint(&image.path, || -> Result<_> {
        let listing = images::open(&image.path, None)?.walk(&Rules::default())?;
        let found = listing.found.iter().map(|found| &found.entry);
        Ok(identify(found, Source::Image).fingerprint)
    })?;
    if fingerprint == hex(&base.fingerprint) {
        return Ok(());
    }
    let reason = format!(
        "'{}' is not the image that it was made from",
        image.path.display()
    );
    Err(Error::OtherBase(reason).into())
}

/// Makes a copy of an image and lets the guest merge archives into it.
fn commit(
    base: &Path,
    changes: &[std::path::PathBuf],
    output: &Path,
    any_base: bool,
    general: &General,
) -> Result<u8> {
    let image = Image::open(base)?;
    examine(changes, any_base, &image, &Writes::Memory)?;
    let copy = images::copy(base, output)?;
    let status = run::merge_into(copy.path(), changes, any_base, general)?;
    if status == 0 {
        copy.keep(output)?;
    }
    Ok(status)
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let new = images::Unfinished::beside(path)?;
    let mut file = BufWriter::new(new.file());
    write(&mut file)?;
    std::io::Write::flush(&mut file)
        .with_context(|| format!("cannot write '{}'", path.display()))?;
    drop(file);
    new.keep(path)
}
