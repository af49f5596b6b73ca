//! `apppot image verify` and `resize`, which are the work of e2fsprogs and squashfs-tools.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{fchown, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use apppot_backends::image::{Image, ImageKind};
use apppot_image::oci::Digest;
use serde_json::json;

use crate::cli::General;
use crate::failure::{hinted, print_out, say};
use crate::output::Output;

/// Where tools are that ordinary users do not have on PATH.
const PATHS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Where programs are, those of administrators too.
pub(super) fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:{PATHS}")
}

/// Checks the filesystem of an image, and the whole file if its SHA-256 is given.
pub(super) fn verify(path: &Path, sha256: Option<&str>, general: &General) -> Result<()> {
    let image = Image::open(path)?;
    let shown = path.display();
    if let Some(wanted) = sha256 {
        let mut file = File::open(path).with_context(|| format!("cannot open '{shown}'"))?;
        let found =
            Digest::of_stream(&mut file).with_context(|| format!("cannot read '{shown}'"))?;
        if !found.hex().eq_ignore_ascii_case(wanted) {
            bail!("'{shown}' is another file: its SHA-256 is {}", found.hex());
        }
    }
    let mut name = image.path.clone().into_os_string();
    let checked = match image.filesystem {
        Some("ext4") => {
            if image.start > 0 {
                name.push(format!("?offset={}", image.start));
            }
            call("e2fsck", "e2fsprogs", &["-f".into(), "-n".into(), name])?
        }
        Some("squashfs") => {
            // Unpacks everything, and keeps nothing.
            let words = ["-no-progress", "-pf", "/dev/stdout"].map(OsString::from);
            call(
                "unsquashfs",
                "squashfs-tools",
                &[&words[..], &[name]].concat(),
            )?
        }
        Some("erofs") => call("fsck.erofs", "erofs-utils", &[name])?,
        other => {
            let what = other.unwrap_or("a directory");
            return Err(hinted(
                format!("'{shown}': {what} cannot be checked here"),
                "ext4, squashfs and erofs can be",
            ));
        }
    };
    if let Err(said) = checked {
        return Err(hinted(
            format!("'{shown}' is damaged: {said}"),
            "copy or import it again; e2fsck -f may repair an ext4 image",
        ));
    }
    if general.json {
        print_out(&format!("{}\n", json!({ "image": path, "sound": true })));
    } else if !general.quiet {
        say(&format!(
            "{shown}: its {} is sound",
            image.filesystem.unwrap_or_default()
        ));
    }
    Ok(())
}

/// Gives an image another size. The work is done on a copy, which shares blocks where the host's
/// filesystem can.
pub(super) fn resize(path: &Path, size: u64, general: &General) -> Result<()> {
    let image = Image::open(path)?;
    let shown = path.display();
    if image.kind != ImageKind::Partition || image.filesystem != Some("ext4") {
        return Err(hinted(
            format!("'{shown}' is {}, which cannot be resized", image.kind),
            "raw partition images with ext4 can be",
        ));
    }
    if size % 4096 != 0 {
        return Err(hinted(
            format!("{size} bytes are no size for an image"),
            "give whole MiB",
        ));
    }
    let output = Output::begin(path, &[])?;
    copy_of(path, &output).with_context(|| format!("cannot copy '{shown}'"))?;
    let name = output.path().into_os_string();
    let cannot = |said: String| anyhow::anyhow!("cannot resize '{shown}': {said}");
    let checked = call(
        "e2fsck",
        "e2fsprogs",
        &["-f".into(), "-p".into(), name.clone()],
    )?;
    checked.map_err(cannot)?;
    let kibibytes = format!("{}K", size / 1024);
    let resized = call("resize2fs", "e2fsprogs", &[name, kibibytes.into()])?;
    resized.map_err(|said| {
        let info = format!("'apppot image info {shown}' says how much is in it; it is as it was");
        hinted(cannot(said).to_string(), info)
    })?;
    output
        .file()
        .set_len(size)
        .with_context(|| format!("cannot write '{shown}'"))?;
    output.keep()?;
    if general.json {
        print_out(&format!("{}\n", json!({ "image": path, "size": size })));
    } else if !general.quiet {
        say(&format!("{shown}: {} MiB", size >> 20));
    }
    Ok(())
}

/// Copies an image with its owner and mode.
fn copy_of(path: &Path, output: &Output) -> Result<()> {
    let source = File::open(path)?;
    let (before, copy) = (source.metadata()?, output.file());
    let own = copy.metadata()?;
    if (before.uid(), before.gid()) != (own.uid(), own.gid()) {
        let given = fchown(copy, Some(before.uid()), Some(before.gid()));
        given.map_err(|error| {
            hinted(
                format!("it belongs to another user or group: {error}"),
                "resize it as its owner, or import it as an image of your own",
            )
        })?;
    }
    copy.set_permissions(before.permissions())?;
    Ok(crate::snap::images::copy_blocks(source, copy)?)
}

/// Runs a tool: what it has said, when it has failed.
fn call(tool: &str, package: &str, args: &[OsString]) -> Result<Result<(), String>> {
    let output = Command::new("env")
        .arg(format!("PATH={}", path()))
        .arg("LC_ALL=C")
        .arg(tool)
        .args(args)
        .stdin(Stdio::null())
        .stdout(if tool == "unsquashfs" {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .output()
        .with_context(|| format!("cannot start {tool}"))?;
    match output.status.code() {
        Some(0) => Ok(Ok(())),
        // e2fsck has repaired what was left to do after an unclean end.
        Some(1) if args.iter().any(|word| word == "-p") => Ok(Ok(())),
        Some(127) => Err(hinted(
            format!("there is no {tool} here"),
            format!("install {package}"),
        )),
        _ => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            let last = lines
                .iter()
                .rev()
                .take(8)
                .rev()
                .copied()
                .collect::<Vec<_>>()
                .join("; ");
            Ok(Err(format!("{tool}: {last}")))
        }
    }
}
