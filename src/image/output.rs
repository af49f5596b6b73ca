//! A file that has its name only when it is complete. Where the filesystem can do it, it has no name at
//! all before, so that nothing is left whatever ends us.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{AtFlags, AT_FDCWD};

use crate::failure::hinted;

/// A file on its way to its name.
pub(super) struct Output {
    file: File,
    target: PathBuf,
    replaces: bool,
    /// Its name until then, where it must have one.
    named: Option<tempfile::TempPath>,
}

impl Output {
    /// Begins a file that will be `target`, and with `replaces` takes the place of one that is there.
    pub(super) fn create(target: &Path, replaces: bool) -> Result<Self> {
        if !replaces && target.symlink_metadata().is_ok() {
            return Err(hinted(
                format!("'{}' exists", target.display()),
                "give another name, or --force to replace it",
            ));
        }
        let cannot = || format!("cannot write '{}'", target.display());
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (file, named) = begin(directory).with_context(cannot)?;
        Ok(Output {
            file,
            target: target.to_owned(),
            replaces,
            named,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The file as another process of ours finds it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.file.as_raw_fd()
        ))
    }

    /// Gives the file its name.
    pub(super) fn keep(self) -> Result<()> {
        let Output {
            file,
            target,
            replaces,
            named,
        } = self;
        let cannot = || format!("cannot write '{}'", target.display());
        let kept = match named {
            Some(path) if replaces => path.persist(&target).map_err(|error| error.error),
            Some(path) => path.persist_noclobber(&target).map_err(|error| error.error),
            None if replaces => replace(&file, &target),
            None => link(&file, &target),
        };
        kept.with_context(cannot)
    }
}

fn begin(directory: &Path) -> io::Result<(File, Option<tempfile::TempPath>)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE);
    if let Ok(file) = options.open(directory) {
        return Ok((file, None));
    }
    let file = tempfile::Builder::new()
        .prefix(".apppot-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(directory)?;
    let (file, path) = file.into_parts();
    Ok((file, Some(path)))
}

/// Gives a file without a name one that nothing has.
fn link(file: &File, name: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = AtFlags::AT_SYMLINK_FOLLOW;
    Ok(nix::unistd::linkat(
        AT_FDCWD,
        &source[..],
        AT_FDCWD,
        name,
        flags,
    )?)
}

/// Lets a file without a name take the place of another one.
fn replace(file: &File, target: &Path) -> io::Result<()> {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".apppot-{}", std::process::id()));
    let name = PathBuf::from(name);
    link(file, &name)?;
    std::fs::rename(&name, target).inspect_err(|_| {
        let _ = std::fs::remove_file(&name);
    })
}
