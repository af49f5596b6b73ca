//! Decompression: what a stream is compressed with is seen from its first bytes.

use std::io::{self, Chain, Cursor, Read};

/// Bytes that are looked at.
const MAGIC: usize = 6;
/// Memory that an xz stream may ask for: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 512 << 20;

/// A stream whose first bytes have been looked at.
type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Ways of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// gzip, also several in a row.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
}

/// What `start`, the first bytes of a file, says.
#[must_use]
pub fn detect(start: &[u8]) -> Compression {
    let is = |magic: &[u8]| start.starts_with(magic);
    let is_skippable =
        start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == *b"\x2a\x4d\x18";
    match () {
        () if is(b"\x1f\x8b") => Compression::Gzip,
        () if is(b"\x28\xb5\x2f\xfd") || is_skippable => Compression::Zstd,
        () if is(b"\xfd7zXZ\0") => Compression::Xz,
        () if is(b"BZh") => Compression::Bzip2,
        () => Compression::None,
    }
}

/// The decompressed bytes of `reader`, and what they were compressed with.
///
/// # Errors
/// Reading fails, or a decompressor cannot be made.
pub fn open<R: Read + Send + 'static>(
    mut reader: R,
) -> io::Result<(Compression, Box<dyn Read + Send>)> {
    let mut start = Vec::new();
    reader.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
    let compression = detect(&start);
    let reader: Peeked<R> = Cursor::new(start).chain(reader);
    Ok((compression, decoder(compression, reader)?))
}

fn decoder<R: Read + Send + 'static>(
    compression: Compression,
    reader: R,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(reader))),
        Compression::Zstd => Box::new(zstd::Decoder::new(reader)?),
        Compression::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(
                buffered(reader),
                stream,
            ))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered(reader))),
    })
}

fn buffered<R: Read>(reader: R) -> io::BufReader<R> {
    io::BufReader::with_capacity(128 << 10, reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_seen_from_the_first_bytes() {
        for (start, compression) in [
            (&b"\x1f\x8b\x08"[..], Compression::Gzip),
            (b"\x28\xb5\x2f\xfd\0\0", Compression::Zstd),
            (b"\x5e\x2a\x4d\x18\0\0", Compression::Zstd),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"BZh9", Compression::Bzip2),
            (b"", Compression::None),
            (b"etc/pa", Compression::None),
        ] {
            assert_eq!(detect(start), compression, "{start:?}");
        }
    }
}
