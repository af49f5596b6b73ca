//! A demand for signatures: what a machine is made of is signed by a key that whoever demands trusts.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::image::{Image, ImageKind};
use apppot_backends::{qemu, uml};

use super::{verify, Key, Verified};
use crate::cli::MachineArgs;
use crate::config::{self, Config, Origin};
use crate::failure::hinted;

/// `require-signature = true` of a configuration file, and the keys that satisfy it.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    /// The file that demands: of several, the one that the user has the least say in.
    origin: PathBuf,
    keys: Vec<Key>,
}

impl Demand {
    /// The demand of a configuration, if it has one.
    pub(crate) fn of(config: &Config) -> Option<Self> {
        let required = &config.require_signature;
        let origin = match &required.origin {
            Origin::File(path) if required.value => path.clone(),
            _ => return None,
        };
        Some(Demand {
            origin,
            keys: config.trusted_keys.value.clone(),
        })
    }

    /// Refuses options that bring in what cannot be signed.
    ///
    /// # Errors
    /// There is such an option.
    pub(crate) fn check_options(&self, args: &MachineArgs) -> Result<()> {
        let overlay = args.overlay.as_ref();
        let overlay = overlay.is_some_and(|path| path.as_os_str() != "memory");
        for (used, option, hint) in [
            (
                args.write,
                "--write",
                "have the changed image signed, then run it",
            ),
            (
                overlay,
                "--overlay",
                "make a changes archive of it with 'apppot snap changes', and have that signed",
            ),
            (!args.extra.is_empty(), "--extra", "leave it out"),
        ] {
            if used {
                return Err(hinted(
                    format!("{option} cannot be used: {}", self.says()),
                    hint,
                ));
            }
        }
        Ok(())
    }

    /// Verifies the signature of an image. The host's own root has none and needs none.
    ///
    /// # Errors
    /// It is not signed by a trusted key.
    pub(crate) fn check_image(&self, image: &Image) -> Result<()> {
        if image.path == Path::new("/") {
            return Ok(());
        }
        let shown = || {
            format!(
                "cannot use image '{}': {}",
                image.path.display(),
                self.says()
            )
        };
        if image.kind == ImageKind::Directory {
            return Err(hinted(
                "a directory cannot be signed",
                "use an image file, such as 'apppot image import' makes",
            ))
            .with_context(shown);
        }
        let real = std::fs::canonicalize(&image.path).with_context(shown)?;
        let file = File::open(&real).with_context(shown)?;
        image.check(&file)?;
        self.check(&file, &real).with_context(shown)
    }

    /// Verifies the signature of an archive: `file`, whose real name is `path`.
    ///
    /// # Errors
    /// It is not signed by a trusted key.
    pub(crate) fn check_archive(&self, file: &File, path: &Path) -> Result<()> {
        self.check(file, path).with_context(|| {
            let says = self.says();
            format!("cannot use changes archive '{}': {says}", path.display())
        })
    }

    /// The kernel is the site's: one that its configuration names, or a file that is root's.
    ///
    /// # Errors
    /// It is somebody else's.
    pub(crate) fn check_kernel(&self, config: &Config) -> Result<()> {
        if config.kernel.origin == Origin::File(PathBuf::from(config::SITE)) {
            return Ok(());
        }
        let is_roots = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|file| file.uid() == 0 && file.mode() & 0o022 == 0)
        };
        let kernels = match &config.kernel.value {
            Some(path) => vec![path.clone()],
            // Which of the backends it will be, nobody has said.
            None => [uml::kernel::first(), qemu::kernel::first()]
                .into_iter()
                .flatten()
                .collect(),
        };
        let Some(kernel) = kernels.iter().find(|path| !is_roots(path)) else {
            return Ok(());
        };
        Err(hinted(
            format!(
                "cannot use kernel '{}': {}, and it is not root's",
                kernel.display(),
                self.says()
            ),
            format!(
                "use a kernel that is installed for all, or that '{}' names",
                config::SITE
            ),
        ))
    }

    fn check(&self, file: &File, path: &Path) -> Result<()> {
        if self.keys.is_empty() {
            return Err(hinted(
                "it trusts no key",
                format!(
                    "name public keys as trusted-keys in '{}'",
                    self.origin.display()
                ),
            ));
        }
        let verified = match self.origin == Path::new(config::SITE) {
            true => Verified::of_site(),
            false => Verified::of_caller(),
        };
        verify(file, path, &self.keys, &verified).map(drop)
    }

    /// Who demands.
    pub(crate) fn says(&self) -> String {
        format!("'{}' requires signatures", self.origin.display())
    }
}
