//! Reading small files. Each system call is 10 µs of every boot under User-Mode Linux.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What a single read asks for; most of what is read at boot is shorter.
const AT_ONCE: usize = 8 << 10;

/// As `std::fs::read`, without asking for the length and, where the file is short, without a second read
/// that finds its end: a regular file's short read is its end, and `/proc/cmdline` comes whole.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; AT_ONCE];
    let len = file.read(&mut bytes)?;
    bytes.truncate(len);
    if len == AT_ONCE {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_length_are_read_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for len in [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 5 * AT_ONCE] {
            let bytes: Vec<u8> = (0..len).map(|index| index as u8).collect();
            std::fs::write(file.path(), &bytes).unwrap();
            assert!(read(file.path()).unwrap() == bytes, "{len}");
        }
        assert!(read(Path::new("/no/such")).is_err());
    }
}
