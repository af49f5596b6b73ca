//! Copy-on-write files in QEMU's own format (`docs/interop/qcow2.txt`): an empty one is made here, and
//! whether a file belongs to an image is examined before QEMU uses it. What is in it comes from QEMU.

use std::os::unix::ffi::OsStrExt;

use crate::overlay::{number, Below, Empty, Format};

/// The format.
pub(crate) const QCOW2: Format = Format {
    empty,
    header: CLUSTER as usize,
    read,
};

const MAGIC: &[u8; 4] = b"QFI\xfb";
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the image that one entry of the first-level table is for: a cluster of 8-byte entries, of
/// a cluster each.
const PER_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
const HEADER_LEN: u32 = 104;
/// Type of the header extension that says which image is below: ours, and passed over by QEMU.
const BASE: u32 = u32::from_be_bytes(*b"ApPt");
/// Type of the extension that names the format of the image below.
const BASE_FORMAT: u32 = 0xe279_2aca;

/// What an empty file begins with: a header, the counts of clusters in use, and a table without
/// entries, a cluster or more each.
fn empty(below: &Below) -> Result<Empty, String> {
    let size = below.size.next_multiple_of(512);
    let entries = size.div_ceil(PER_ENTRY);
    let table_clusters = (entries * 8).div_ceil(CLUSTER);
    let clusters = 3 + table_clusters;
    // The first block of counts is for 2 GiB of this file.
    if clusters > CLUSTER / 2 {
        return Err(String::from("the image is too large for one"));
    }
    let name = below.path.as_os_str().as_bytes();
    let mut base = below.size.to_be_bytes().to_vec();
    base.extend(below.mtime.to_be_bytes());
    let mut extensions = Vec::new();
    extension(&mut extensions, BASE_FORMAT, b"raw");
    extension(&mut extensions, BASE, &base);
    extension(&mut extensions, 0, b"");
    let name_at = u64::from(HEADER_LEN) + extensions.len() as u64;
    if name.len() > 1023 {
        return Err(String::from("the image's path is too long for its header"));
    }
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(name_at.to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(0u32.to_be_bytes()); // not encrypted
    bytes.extend((entries as u32).to_be_bytes());
    bytes.extend((3 * CLUSTER).to_be_bytes()); // first-level table
    bytes.extend(CLUSTER.to_be_bytes()); // table of blocks of counts
    bytes.extend(1u32.to_be_bytes()); // its clusters
    bytes.extend([0; 4 + 8]); // no snapshots
    bytes.extend([0; 3 * 8]); // no features
    bytes.extend(4u32.to_be_bytes()); // counts have 2⁴ bits
    bytes.extend(HEADER_LEN.to_be_bytes());
    bytes.extend(extensions);
    bytes.extend_from_slice(name);
    bytes.resize(CLUSTER as usize, 0);
    bytes.extend((2 * CLUSTER).to_be_bytes()); // the block of counts
    bytes.resize(2 * CLUSTER as usize, 0);
    for _ in 0..clusters {
        bytes.extend(1u16.to_be_bytes());
    }
    Ok((bytes, clusters * CLUSTER))
}

/// Adds a header extension, padded to a multiple of eight bytes.
fn extension(out: &mut Vec<u8>, kind: u32, content: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((content.len() as u32).to_be_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn read(start: &[u8]) -> Result<Below, String> {
    if !start.starts_with(MAGIC) || number(start, 4, 4) != Some(VERSION.into()) {
        return Err(String::from("it is no copy-on-write file of QEMU"));
    }
    // Data in another file, or what QEMU may learn in the future. (The first two: QEMU was killed, and
    // sees to that itself; something is broken, which it says itself.)
    if number(start, 72, 8).is_none_or(|features| features & !0b11 != 0) {
        let reason = "it uses features of the format that AppPot does not";
        return Err(String::from(reason));
    }
    let unknown = || String::from("it does not say what the image below it was like");
    let base = base(start).ok_or_else(unknown)?;
    let size = number(base, 0, 8).ok_or_else(unknown)?;
    let mtime = number(base, 8, 4).ok_or_else(unknown)?;
    let path = path(start).ok_or_else(unknown)?;
    Ok(Below {
        path: std::ffi::OsStr::from_bytes(path).into(),
        mtime: mtime as u32,
        size,
    })
}

/// The path of the image below.
fn path(start: &[u8]) -> Option<&[u8]> {
    let (at, len) = (number(start, 8, 8)?, number(start, 16, 4)?);
    let at = usize::try_from(at).ok()?;
    start.get(at..at.checked_add(len as usize)?)
}

/// The extension with what is known of the image below.
fn base(start: &[u8]) -> Option<&[u8]> {
    let mut at = number(start, 100, 4)? as usize;
    loop {
        let (kind, len) = (
            number(start, at, 4)? as u32,
            number(start, at + 4, 4)? as usize,
        );
        let content = start.get(at + 8..(at + 8).checked_add(len)?)?;
        match kind {
            BASE => return Some(content),
            0 => return None,
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::path::{Path, PathBuf};

    fn below() -> Below {
        Below {
            path: PathBuf::from("/images/with space"),
            mtime: 0x1234_5678,
            size: 0x1_0000_0200,
        }
    }

    #[test]
    fn headers_round_trip_and_cut_off_ones_are_no_crash() {
        let (bytes, len) = empty(&below()).unwrap();
        assert_eq!(read(&bytes), Ok(below()));
        assert!(bytes.len() as u64 <= len);
        for len in 0..160 {
            assert!(read(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let (mut external, _) = empty(&below()).unwrap();
        external[79] = 4;
        for (bytes, expected) in [
            (&b""[..], "no copy-on-write file"),
            (b"OOOM\0\0\0\x03", "no copy-on-write file"),
            (&external, "features"),
        ] {
            let reason = read(bytes).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn a_changed_or_another_image_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (directory.path().join("image"), directory.path().join("o"));
        std::fs::write(&image, vec![1; 4096]).unwrap();
        QCOW2.examine(&overlay, &image).unwrap();
        assert!(!overlay.exists(), "examining makes nothing");
        QCOW2.open(&overlay, &image).unwrap();
        QCOW2.open(&overlay, &image).unwrap();
        let reason = |error: Error| error.to_string();
        let other = directory.path().join("other");
        std::fs::copy(&image, &other).unwrap();
        assert!(reason(QCOW2.open(&overlay, &other).unwrap_err()).contains("made for"));
        std::fs::write(&image, vec![1; 8192]).unwrap();
        assert!(reason(QCOW2.open(&overlay, &image).unwrap_err()).contains("has changed"));
    }

    /// The format as another implementation reads it.
    #[test]
    fn qemu_finds_nothing_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let (image, overlay) = (directory.path().join("image"), directory.path().join("o"));
        std::fs::File::create(&image)
            .unwrap()
            .set_len(3 << 30)
            .unwrap();
        QCOW2.open(&overlay, Path::new(&image)).unwrap();
        let check = std::process::Command::new("qemu-img")
            .args(["check", "-f", "qcow2"])
            .arg(&overlay)
            .output();
        let Ok(output) = check else {
            assert!(
                std::env::var_os("CI").is_none(),
                "qemu-img is not installed"
            );
            eprintln!("skipped: qemu-img is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let fine = output.status.success() && text.contains("No errors");
        assert!(fine, "{output:?}");
    }
}
