//! Where the appliance has sudo(8): without a password, since the user owns the appliance.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use apppot_contract::{Contract, Writes};
use nix::mount::{mount, umount2, MntFlags, MsFlags};

use crate::accounts::Identity;
use crate::failure::{Failure, Step};

/// The rule, among those that sudo reads (`apppot_snapshot` leaves this name out of archives).
const RULE: &str = "etc/sudoers.d/apppot";
/// What is shown as the rule where writes to the root are kept: a file in memory.
const BEHIND: &str = "/run/apppot-sudo";

/// The rule is there as long as this is.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// Where the rule is shown, in an image that must not keep it.
    shown: Option<PathBuf>,
}

/// Lets the user of `identity` use sudo below `root`.
pub(crate) fn allow(
    root: &Path,
    identity: &Identity,
    contract: &Contract,
) -> Result<Allowed, Failure> {
    let nothing = Allowed { shown: None };
    let rule = root.join(RULE);
    let directory = rule.parent().unwrap_or(root);
    // A directory that cannot be read is the host's own, seen by an ordinary user.
    let has_sudo = root.join("usr/bin/sudo").exists() && fs::read_dir(directory).is_ok();
    if identity.uid == 0 || !has_sudo {
        return Ok(nothing);
    }
    let text = format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", identity.name);
    let kept = contract
        .root
        .as_ref()
        .is_some_and(|root| root.writes == Writes::Device);
    let done = match kept {
        false => put(&rule, &text).map(|()| nothing),
        true => show(&rule, &text).map(|()| Allowed { shown: Some(rule) }),
    };
    done.step("allowing the user to use sudo")
}

/// Writes a file as sudo wants it, in place of whatever is there.
fn put(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o440)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Shows a rule that is in memory. The file below is empty: a machine that is killed leaves no more
/// than that in its image.
fn show(path: &Path, text: &str) -> io::Result<()> {
    let behind = Path::new(BEHIND);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(behind)?;
    let behind = behind.join("rule");
    put(&behind, text)?;
    put(path, "")?;
    let none: Option<&str> = None;
    mount(Some(&behind), path, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

impl Drop for Allowed {
    /// What cannot be taken away is an empty file.
    fn drop(&mut self) {
        if let Some(path) = &self.shown {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_rule_where_there_is_sudo() {
        let root = tempfile::tempdir().unwrap();
        let identity = Identity {
            name: String::from("ada"),
            uid: 1000,
            gid: 1000,
            groups: vec![],
            home: PathBuf::from("/"),
            shell: PathBuf::from("/bin/sh"),
        };
        let rule = root.path().join(RULE);
        let contract = Contract::default();
        allow(root.path(), &identity, &contract).unwrap();
        assert!(!rule.exists());
        for directory in ["usr/bin", "etc/sudoers.d"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("usr/bin/sudo"), "").unwrap();
        for _ in 0..2 {
            drop(allow(root.path(), &identity, &contract).unwrap());
            let text = fs::read_to_string(&rule).unwrap();
            assert_eq!(text, "ada ALL=(ALL:ALL) NOPASSWD: ALL\n");
            let mode = fs::metadata(&rule).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o440);
        }
        fs::remove_file(&rule).unwrap();
        let root_user = Identity { uid: 0, ..identity };
        allow(root.path(), &root_user, &contract).unwrap();
        assert!(!rule.exists());
    }
}
