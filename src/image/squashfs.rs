//! Squashfs images, packed by mksquashfs (squashfs-tools 4.5 or newer, which reads tar archives).

use std::fs::File;
use std::io::{BufWriter, Read};
use std::process::{Child, Command, Stdio};

use anyhow::{bail, Context, Result};
use apppot_image::export;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{Ext4, Tree};

use crate::failure::hinted;
use crate::output::Output;

/// Whether mksquashfs is there.
pub(super) fn check() -> Result<()> {
    let asked = Command::new("mksquashfs")
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.map(drop).map_err(|error| {
        hinted(
            format!("squashfs images are packed by mksquashfs: {error}"),
            "install squashfs-tools (4.5 or newer)",
        )
    })
}

/// Packs what is in the ext4 filesystem `raw`.
pub(super) fn pack(raw: File, output: &Output) -> Result<()> {
    let tree = Ext4::open(Box::new(raw), 0)?;
    // Of an archive's root mksquashfs 4.5 takes nothing but what is in it; 4.5.1 of Debian 12 does not heed the
    // numbers given here either, and the root directory is the caller's then.
    let listing = tree.walk(&Rules::everything())?;
    let root = listing.found.first().context("the image has no root")?;
    let meta = &root.entry.meta;
    let mut child = Command::new("mksquashfs")
        .arg("-")
        .arg(output.path())
        .args(["-tar", "-noappend", "-quiet", "-no-progress"])
        .args(["-root-mode", &format!("{:o}", meta.mode)])
        .args(["-root-uid", &meta.uid.to_string()])
        .args(["-root-gid", &meta.gid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start mksquashfs")?;
    let written = match child.stdin.take() {
        Some(pipe) => export::write_tar(&tree, &mut BufWriter::with_capacity(1 << 20, pipe)),
        None => bail!("mksquashfs has no standard input"),
    };
    let said = finish(child)?;
    if let Some(said) = said {
        bail!("mksquashfs: {said}");
    }
    Ok(written?)
}

/// Waits for the end; what it has said, when it has failed.
fn finish(mut child: Child) -> Result<Option<String>> {
    let mut said = String::new();
    if let Some(errors) = &mut child.stderr {
        let _ = errors.take(1 << 16).read_to_string(&mut said);
    }
    let status = child.wait().context("cannot wait for mksquashfs")?;
    Ok((!status.success()).then(|| format!("{} ({status})", said.trim())))
}
