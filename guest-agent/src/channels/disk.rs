//! Block devices with a stream on them, found by what stands at their start.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

/// Opens the block device that starts with `signature`.
pub(super) fn find(signature: &[u8], write: bool) -> io::Result<File> {
    for entry in fs::read_dir("/sys/class/block")? {
        let name = entry?.file_name();
        let path = Path::new("/dev").join(&name);
        if starts_with(&path, signature).unwrap_or(false) {
            return File::options().read(true).write(write).open(path);
        }
    }
    let signature = String::from_utf8_lossy(signature);
    Err(io::Error::other(format!(
        "no disk starts with '{signature}'"
    )))
}

/// Whether these are the first bytes. A device without a medium cannot be read.
fn starts_with(path: &Path, signature: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut start = [0; 512];
    file.rewind()?;
    file.read_exact(&mut start)?;
    // The name in a tar's header ends with a NUL.
    let (name, rest) = start.split_at(signature.len());
    Ok(name == signature && rest[0] == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_whole_name() {
        let place = tempfile::NamedTempFile::new().unwrap();
        for (start, found) in [
            ("apppot-files\0", true),
            ("apppot-files2", false),
            ("", false),
        ] {
            let mut block = start.as_bytes().to_vec();
            block.resize(512, 0);
            fs::write(place.path(), block).unwrap();
            assert_eq!(starts_with(place.path(), b"apppot-files").unwrap(), found);
        }
        fs::write(place.path(), "short").unwrap();
        assert!(starts_with(place.path(), b"apppot-files").is_err());
    }
}
