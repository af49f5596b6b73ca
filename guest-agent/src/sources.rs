//! Where a contract can be. Each source answers found, absent or broken; broken is an error, never
//! skipped. Paths derive from a root, so that tests populate a fake one.

use std::path::{Path, PathBuf};

use apppot_contract::{cmdline, Contract};

use crate::files;

/// What a source said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing for us.
    Absent,
    /// The whole contract.
    Contract(Box<Contract>),
    /// It comes over the link, whose device this is.
    OnLink(PathBuf),
}

/// The kernel command line.
pub(crate) fn command_line(root: &Path) -> Result<Found, String> {
    let path = root.join("proc/cmdline");
    let line = files::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match cmdline::decode(&line).map_err(|error| error.to_string())? {
        cmdline::Found::Absent => Ok(Found::Absent),
        cmdline::Found::Here(contract) => Ok(Found::Contract(contract)),
        cmdline::Found::Elsewhere {
            carrier: cmdline::Carrier::Link,
            link,
        } => Ok(Found::OnLink(link)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Result<Found, String> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/cmdline"), line).unwrap();
        command_line(root.path())
    }

    #[test]
    fn the_command_line_answers_found_absent_or_broken() {
        assert_eq!(found("quiet root=98:0\n"), Ok(Found::Absent));
        assert!(matches!(
            found("quiet apppot.version=1 apppot.id=x\n"),
            Ok(Found::Contract(_))
        ));
        assert_eq!(
            found("apppot.version=1 apppot.link=/dev/ttyS0 apppot.contract=link"),
            Ok(Found::OnLink(PathBuf::from("/dev/ttyS0")))
        );
        let broken = found("apppot.version=1 apppot.nonsense=1").unwrap_err();
        assert!(broken.contains("nonsense"), "{broken}");
        assert!(command_line(Path::new("/no/such")).is_err());
    }
}
