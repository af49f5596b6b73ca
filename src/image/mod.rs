//! `apppot image`: images are made, shown, checked, resized, packed and kept in the store.

mod args;
mod boot;
mod build;
mod import;
mod info;
mod inside;
mod make;
mod publish;
mod source;
mod squashfs;
pub(crate) mod store;
mod tools;
mod workload;

use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_image::export;

pub(crate) use args::ImageCommand;
use args::VerifyArgs;

use crate::cli::General;
use crate::failure::{hinted, say};
use crate::output::Output;
use crate::signature::{self, Key};
use crate::snap::images::Appliance;

/// Where an image says what it was made of.
const ORIGIN: &str = "etc/apppot/image.json";

/// Runs a command of `apppot image`, and returns the exit status.
///
/// # Errors
/// The image cannot be made, read or written.
pub(crate) fn run(command: &ImageCommand, general: &General) -> Result<u8> {
    match command {
        ImageCommand::Import(args) => import::import(args, general)?,
        ImageCommand::Build(args) => build::build(args, general)?,
        ImageCommand::Info { image } => info::info(image, general)?,
        ImageCommand::Sign {
            key,
            comment,
            files,
        } => {
            let files = resolve(files);
            signature::sign(&files, key.as_deref(), comment.as_deref(), general)?;
        }
        ImageCommand::Verify(args) => verify(args, general)?,
        ImageCommand::Resize { image, size } => {
            tools::resize(&store::resolve(image), size.0, general)?;
        }
        ImageCommand::Publish(args) => publish::publish(args, general)?,
        ImageCommand::List => info::list(general)?,
        ImageCommand::Rm { names } => remove(names, general)?,
        ImageCommand::Export { image, output } => {
            let output = output.as_deref().filter(|path| path.as_os_str() != "-");
            export(&store::resolve(image), output)?
        }
    }
    Ok(0)
}

fn resolve(words: &[PathBuf]) -> Vec<PathBuf> {
    words.iter().map(|word| store::resolve(word)).collect()
}

fn verify(args: &VerifyArgs, general: &General) -> Result<()> {
    let files = resolve(&args.files);
    if !args.signature {
        let sha256 = args.sha256.as_deref();
        let mut files = files.iter();
        return files.try_for_each(|file| tools::verify(file, sha256, general));
    }
    let keys = match args.public_key.is_empty() {
        true => crate::here()?.trusted_keys.value,
        false => {
            let keys = args.public_key.iter();
            keys.map(|key| Key::from_argument(key))
                .collect::<Result<_>>()?
        }
    };
    signature::verify_files(&files, &keys, general.json)
}

/// Removes all or none.
fn remove(names: &[PathBuf], general: &General) -> Result<()> {
    let find = |name: &PathBuf| {
        store::find(name).ok_or_else(|| {
            hinted(
                format!("the store has no image '{}'", name.display()),
                "'apppot image list' lists them; files elsewhere are removed by rm",
            )
        })
    };
    let paths: Result<Vec<PathBuf>> = names.iter().map(find).collect();
    for path in paths? {
        std::fs::remove_file(&path)
            .with_context(|| format!("cannot remove '{}'", path.display()))?;
        if !general.quiet && !general.json {
            say(&format!("removed {}", path.display()));
        }
    }
    Ok(())
}

fn export(image: &Path, path: Option<&Path>) -> Result<()> {
    let cannot = || format!("cannot export '{}'", image.display());
    if path.is_none() && std::io::stdout().is_terminal() {
        return Err(hinted(
            "an archive is nothing for a terminal",
            "name a file with -o",
        ));
    }
    let appliance = Appliance::open(image, None).with_context(cannot)?;
    let tree = appliance.tree;
    let Some(path) = path else {
        let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
        return export::write_tar(tree.as_ref(), &mut out).with_context(cannot);
    };
    let output = Output::begin(path, &[image])?;
    output
        .write(|out| Ok(export::write_tar(tree.as_ref(), out)?))
        .with_context(cannot)?;
    output.keep()
}
