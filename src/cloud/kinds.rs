//! Types of machines.

use anyhow::Result;

use crate::failure::hinted;
use crate::units::Size;

/// Types, the ones that are taken first: name, vCPUs, GiB of memory times 2. Small ones of the family that every
/// region has, then for each size the one with little, usual and much memory (Amazon's pages on T3, C6i,
/// M6i and R6i; all have NVMe and ENA).
const KINDS: [(&str, u32, u64); 26] = [
    ("t3.nano", 2, 1),
    ("t3.micro", 2, 2),
    ("t3.small", 2, 4),
    ("t3.medium", 2, 8),
    ("t3.large", 2, 16),
    ("r6i.large", 2, 32),
    ("c6i.xlarge", 4, 16),
    ("t3.xlarge", 4, 32),
    ("r6i.xlarge", 4, 64),
    ("c6i.2xlarge", 8, 32),
    ("t3.2xlarge", 8, 64),
    ("r6i.2xlarge", 8, 128),
    ("c6i.4xlarge", 16, 64),
    ("m6i.4xlarge", 16, 128),
    ("r6i.4xlarge", 16, 256),
    ("c6i.8xlarge", 32, 128),
    ("m6i.8xlarge", 32, 256),
    ("r6i.8xlarge", 32, 512),
    ("c6i.12xlarge", 48, 192),
    ("m6i.12xlarge", 48, 384),
    ("c6i.16xlarge", 64, 256),
    ("m6i.16xlarge", 64, 512),
    ("r6i.16xlarge", 64, 1024),
    ("c6i.32xlarge", 128, 512),
    ("m6i.32xlarge", 128, 1024),
    ("r6i.32xlarge", 128, 2048),
];

/// The first type with so many bytes of memory and so many vCPUs.
///
/// # Errors
/// There is none.
pub(super) fn choose(memory: u64, cpus: u32) -> Result<&'static str> {
    let halves = memory.div_ceil(1 << 29);
    let fits = |&&(_, has, most): &&(&str, u32, u64)| has >= cpus && most >= halves;
    let found = KINDS.iter().find(fits);
    found.map(|(name, ..)| *name).ok_or_else(|| {
        hinted(
            format!(
                "no type of machine that AppPot knows has {} and {cpus} vCPUs",
                Size(memory)
            ),
            "name one with --ec2-type",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_large_enough() {
        const GIB: u64 = 1 << 30;
        for (memory, cpus, kind) in [
            (GIB / 2, 1, "t3.nano"),
            (2 * GIB, 1, "t3.small"),
            (2 * GIB + 1, 2, "t3.medium"),
            (2 * GIB, 3, "c6i.xlarge"),
            (12 * GIB, 2, "r6i.large"),
            (20 * GIB, 6, "t3.2xlarge"),
            (1024 * GIB, 1, "r6i.32xlarge"),
        ] {
            assert_eq!(choose(memory, cpus).unwrap(), kind);
        }
        assert!(choose(1025 * GIB, 1).is_err());
        assert!(choose(GIB, 129).is_err());
    }
}
