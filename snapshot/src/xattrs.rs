//! Which extended attributes belong to a file's state.

/// The overlay filesystem's own notes, which mean nothing elsewhere.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// Signatures of the integrity subsystem: they hold for one machine's key.
const INTEGRITY: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// Access control lists, as the kernel names them.
pub(crate) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// Access control lists of new files in a directory.
pub(crate) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Whether the attribute is recorded and merged.
#[must_use]
pub fn is_recorded(name: &[u8]) -> bool {
    if name.starts_with(OVERLAY) || INTEGRITY.contains(&name) {
        return false;
    }
    let spaces: [&[u8]; 3] = [b"user.", b"security.", b"trusted."];
    let ours = |space: &&[u8]| name.starts_with(space) && name.len() > space.len();
    spaces.iter().any(ours) || name == ACL_ACCESS || name == ACL_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::is_recorded;

    #[test]
    fn what_belongs_to_one_machine_is_not_recorded() {
        for name in ["user.x", "security.capability", "system.posix_acl_access"] {
            assert!(is_recorded(name.as_bytes()), "{name}");
        }
        for name in [
            "trusted.overlay.opaque",
            "security.ima",
            "user.",
            "system.data",
            "x",
        ] {
            assert!(!is_recorded(name.as_bytes()), "{name}");
        }
    }
}
