//! `apppot snap`: what is in an appliance, and what changed in it, without booting it; and the
//! examination of archives that a job is to start with.

mod cache;
pub(crate) mod committed;
pub(crate) mod images;
pub(crate) mod kept;
mod report;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::image::Image;
use apppot_backends::spec::{Changes, Network, Writes};
use apppot_backends::stamp::Stamp;
use apppot_snapshot::archive::{self, Archive, Manifest};
use apppot_snapshot::base::{identify, Base, Source};
use apppot_snapshot::diff::compare;
use apppot_snapshot::entry::Hash;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::Listing;
use apppot_snapshot::{hex, Entry, Error};

use self::images::Appliance;
use crate::cli::{ChangesArgs, General, SnapCommand, WhatChanged};
use crate::output::Output;
use crate::run;
use crate::signature::Demand;

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
        } => record_base(image, overlay.as_deref(), output, general)?,
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
            force,
            changes_any_base,
        } => {
            let begin = match force {
                true => Output::begin,
                false => Output::begin_new,
            };
            let inputs = std::iter::once(base).chain(changes);
            let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).collect();
            let new = begin(output, &inputs)?;
            return commit(base, changes, new, *changes_any_base, general);
        }
    }
    Ok(0)
}

fn record_base(
    path: &Path,
    overlay: Option<&Path>,
    output: &Path,
    general: &General,
) -> Result<()> {
    let inputs: Vec<&Path> = std::iter::once(path).chain(overlay).collect();
    let new = Output::begin(output, &inputs)?;
    let (_, listing) = record(path, overlay, &Rules::default(), general)?;
    let base = Base::new(entries(listing), Source::Image);
    new.write(|file| Ok(base.write(file)?))?;
    new.keep()?;
    report::base(&base, output, general);
    Ok(())
}

/// Opens and records an appliance.
fn record(
    path: &Path,
    overlay: Option<&Path>,
    rules: &Rules,
    general: &General,
) -> Result<(Appliance, Listing)> {
    let shown = || format!("cannot read appliance '{}'", path.display());
    let appliance = Appliance::open(path, overlay).with_context(shown)?;
    let listing = appliance.record(path, rules, general).with_context(shown)?;
    Ok((appliance, listing))
}

fn entries(listing: Listing) -> Vec<Entry> {
    let found = listing.found.into_iter();
    found.map(|found| found.entry).collect()
}

/// An appliance and its base.
struct Compared {
    base: Base,
    appliance: Appliance,
    listing: Listing,
    rules: Rules,
}

impl Compared {
    fn new(what: &WhatChanged, general: &General) -> Result<Self> {
        let rules = rules(what)?;
        let base = base(&what.base, general)?;
        let (appliance, listing) = record(&what.image, what.overlay.as_deref(), &rules, general)?;
        Ok(Compared {
            base,
            appliance,
            listing,
            rules,
        })
    }
}

fn changes(args: &ChangesArgs, general: &General) -> Result<()> {
    let what = &args.what;
    let inputs = [&what.base, &what.image].into_iter().chain(&what.overlay);
    let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).collect();
    let new = Output::begin(&args.output, &inputs)?;
    let compared = Compared::new(what, general)?;
    let mut written = None;
    new.write(|file| {
        let Compared {
            base,
            appliance,
            listing,
            rules,
        } = &compared;
        let tree = appliance.tree.as_ref();
        written = Some(archive::write(file, base, tree, listing, rules)?);
        appliance.unchanged()
    })?;
    new.keep()?;
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
    let (_, listing) = record(path, None, &Rules::default(), general)?;
    Ok(Base::new(entries(listing), Source::Image))
}

fn open(path: &Path) -> Result<Archive> {
    let archive = archive::open_file(path).and_then(Archive::open);
    archive.with_context(|| format!("cannot use changes archive '{}'", path.display()))
}

/// An archive that a machine is to merge: whole, and for the machine's image as far as is known here.
#[derive(Debug)]
pub(crate) struct Examined {
    /// For the machine.
    pub(crate) changes: Changes,
    /// The checksum.
    id: Hash,
    /// Number of records.
    records: usize,
    /// Bytes of content, unpacked.
    stored: u64,
}

/// Examines the archives that a machine is to merge, while an error is still cheap.
///
/// # Errors
/// One is missing, truncated, damaged, made for another base, or not signed as is demanded.
pub(crate) fn examine(
    paths: &[PathBuf],
    any_base: bool,
    image: &Image,
    writes: &Writes,
    demand: Option<&Demand>,
) -> Result<Vec<Examined>> {
    let examined = paths.iter().enumerate().map(|(index, path)| {
        let open = || format!("cannot open changes archive '{}'", path.display());
        let used = || format!("cannot use changes archive '{}'", path.display());
        // The machine's process may have another working directory.
        let real = std::fs::canonicalize(path).with_context(open)?;
        let file = archive::open_file(&real).with_context(open)?;
        let stamp = Stamp::of(&file).with_context(open)?;
        if let Some(demand) = demand {
            demand.check_archive(&file, &real)?;
        }
        let archive = Archive::open(file).with_context(used)?;
        // Later ones may be for what the first ones make; an image that is written into may hold
        // them already. The guest looks, too, at what an archive changes.
        if index == 0 && !any_base && *writes != Writes::Image {
            compare_base(&archive, image).with_context(used)?;
        }
        Ok(Examined {
            changes: Changes {
                path: real,
                any_base,
                stamp,
            },
            id: archive.id,
            records: archive.manifest.header.records,
            stored: archive.manifest.header.stored,
        })
    });
    examined.collect()
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
        let listing = Appliance::open(&image.path, None)?
            .tree
            .walk(&Rules::default())?;
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
    changes: &[PathBuf],
    new: Output,
    any_base: bool,
    general: &General,
) -> Result<u8> {
    let image = Image::open(base)?;
    let archives = examine(changes, any_base, &image, &Writes::Memory, None)?;
    images::copy(&image, new.file())?;
    images::lengthen(&image, new.file(), &archives).context("cannot write the new image")?;
    let merge = run::Inside {
        command: vec!["/run/apppot-bin/apppot-snap".into(), "sync".into()],
        changes,
        any_base,
        network: Network::None,
        runs_image: false,
        transcript: None,
    };
    let status = run::inside(&new.path(), merge, general)?;
    if status == 0 {
        new.keep()?;
    }
    Ok(status)
}
