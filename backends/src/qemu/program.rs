//! QEMU's program: where it is and how old.

use std::path::{Path, PathBuf};

use crate::cache::{self, Kind};
use crate::{ask, Error, Result};

/// The name that QEMU's builds for this host have.
const NAME: &str = "qemu-system-x86_64";

/// The oldest version that AppPot is tested with: that of Debian 12.
const OLDEST: (u32, u32) = (7, 2);

const HINT: &str = "install the package qemu-system-x86, or use the backend uml";

/// QEMU's executable.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// Its version, such as `7.2.22`.
    pub version: String,
}

impl Program {
    /// The first one on `PATH`.
    ///
    /// # Errors
    /// There is none, or it is too old.
    pub fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin".into());
        let found = std::env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(NAME))
            .find(|path| path.is_file());
        match found {
            Some(path) => Self::inspect(&path),
            None => Err(refuse(NAME, "there is none on PATH")),
        }
    }

    /// What it consists of: itself, and the directories with its libraries, modules and firmware, where
    /// distributions and its own installation have them.
    pub(super) fn installed(&self) -> Vec<PathBuf> {
        let prefix = self.path.ancestors().nth(2).unwrap_or(Path::new("/usr"));
        let mut paths = vec![
            self.path.clone(),
            PathBuf::from("/etc/ld.so.cache"),
            PathBuf::from("/usr/share/seabios"),
        ];
        for base in [Path::new("/"), Path::new("/usr"), prefix] {
            paths.extend(["lib", "lib64", "share/qemu"].map(|name| base.join(name)));
        }
        paths.retain(|path| path.exists());
        paths.sort();
        paths.dedup();
        paths
    }

    fn inspect(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::file("open", path))?;
        if let Some(text) = cache::get(Kind::QemuVersion, &metadata) {
            return Self::of_version(path, &text);
        }
        let text = ask::program(path, "--version")
            .map_err(|reason| refuse(&path.display().to_string(), &reason))?;
        let program = Self::of_version(path, &text)?;
        cache::put(Kind::QemuVersion, &metadata, &text);
        Ok(program)
    }

    /// From what it says to `--version`.
    fn of_version(path: &Path, text: &str) -> Result<Self> {
        let refuse = |reason: &str| refuse(&path.display().to_string(), reason);
        let version = version(text).ok_or_else(|| refuse("it does not say its version"))?;
        if numbers(version) < OLDEST {
            let (major, minor) = OLDEST;
            return Err(refuse(&format!(
                "it is version {version}, and {major}.{minor} is the oldest that works"
            )));
        }
        Ok(Program {
            path: path.to_owned(),
            version: version.to_owned(),
        })
    }
}

fn refuse(program: &str, reason: &str) -> Error {
    Error::NoProgram {
        program: program.to_owned(),
        reason: reason.to_owned(),
        hint: HINT,
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)` → `7.2.22`.
fn version(text: &str) -> Option<&str> {
    let rest = text.split_once("QEMU emulator version ")?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
    let version = &rest[..end.unwrap_or(rest.len())];
    version.contains('.').then_some(version)
}

/// Major and minor number.
fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version
        .split('.')
        .map(|part| part.parse().unwrap_or_default());
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_strange_programs_are_refused() {
        let says = |text| Program::of_version(Path::new("/qemu"), text);
        let new = says("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n").unwrap();
        assert_eq!(new.version, "10.0.2");
        assert!(says("QEMU emulator version 7.2.0\n").is_ok());
        let reason = |text| says(text).unwrap_err().to_string();
        assert!(reason("QEMU emulator version 7.1.9").contains("7.2 is the oldest"));
        assert!(reason("QEMU emulator version 6.2.0").contains("version 6.2.0"));
        assert!(reason("hello").contains("does not say"));
    }
}
