//! What is in an image: one look at every byte.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::ebs::Checksum;
use crate::sign::hex;
use crate::{Error, Result, BLOCK};

/// A file as a cloud takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Its size, bytes.
    pub size: u64,
    /// Its blocks that are not all zeros, in order.
    pub blocks: Vec<Block>,
}

/// A block of [`BLOCK`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub index: u32,
    /// Its SHA-256. After the end of the file come zeros.
    pub checksum: Checksum,
}

/// Reads a file. `report` gets numbers of bytes.
///
/// # Errors
/// The file cannot be read, or changes its size.
pub fn survey(file: &File, report: &mut dyn FnMut(u64)) -> Result<Survey> {
    let size = length(file)?;
    let mut whole = Sha256::new();
    let mut blocks = Vec::new();
    let mut buffer = vec![0; BLOCK as usize];
    for number in 0..size.div_ceil(BLOCK) {
        let index = u32::try_from(number).map_err(|_| too_large())?;
        read_block(file, index, &mut buffer)?;
        let len = (size - number * BLOCK).min(BLOCK);
        whole.update(&buffer[..len as usize]);
        if buffer.iter().any(|byte| *byte != 0) {
            let checksum = Sha256::digest(&buffer).into();
            blocks.push(Block { index, checksum });
        }
        report(len);
    }
    let sha256 = hex(&whole.finalize());
    Ok(Survey {
        sha256,
        size,
        blocks,
    })
}

/// The size of a file or of a block device, bytes.
///
/// # Errors
/// It has none.
pub fn length(file: &File) -> Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
        .map_err(Error::io("examine the image"))
}

fn too_large() -> Error {
    let source = io::Error::from(io::ErrorKind::FileTooLarge);
    Error::io("publish the image")(source)
}

/// Reads a block; zeros where the file has ended.
pub(super) fn read_block(file: &File, index: u32, buffer: &mut [u8]) -> Result<()> {
    let start = u64::from(index) * BLOCK;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], start + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read the image")(error)),
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn blocks_of_zeros_are_left_out_and_the_last_is_filled_up() {
        let mut file = tempfile::tempfile().unwrap();
        let block = BLOCK as usize;
        let mut content = vec![0; 3 * block + 5];
        content[block] = 1;
        content[3 * block + 4] = 2;
        file.write_all(&content).unwrap();
        let mut read = 0;
        let survey = survey(&file, &mut |bytes| read += bytes).unwrap();
        assert_eq!((survey.size, read), (content.len() as u64, survey.size));
        assert_eq!(survey.sha256, hex(&Sha256::digest(&content)));
        content.resize(4 * block, 0);
        let block = |index: u32| Block {
            index,
            checksum: Sha256::digest(&content[index as usize * block..][..block]).into(),
        };
        assert_eq!(survey.blocks, [block(1), block(3)]);
    }

    #[test]
    fn an_empty_file_has_none() {
        let file = tempfile::tempfile().unwrap();
        let survey = survey(&file, &mut |_| ()).unwrap();
        assert_eq!((survey.size, survey.blocks.len()), (0, 0));
    }
}
