//! Digests, and streams that are verified as they are read.

use std::fmt;
use std::io::{self, Read};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::shown;
use crate::{Error, Result};

/// A SHA-256, which is what container images are named by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match hex.len() == 64 && hex.bytes().all(lower) {
            true => Ok(Digest(text)),
            false => Err(format!("'{}' is no SHA-256 digest", shown(text.as_bytes()))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// The digest of all that `reader` gives.
    ///
    /// # Errors
    /// Reading fails.
    pub fn of_stream(reader: &mut dyn Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Self::finish(hasher)),
                len => hasher.update(&buffer[..len]),
            }
        }
    }

    fn finish(hasher: Sha256) -> Self {
        let hex: String = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Digest(format!("sha256:{hex}"))
    }

    /// The 64 digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// Whether it stands for `bytes`.
    pub(super) fn check(&self, what: &str, bytes: &[u8]) -> Result<()> {
        self.compare(what, Digest::of(bytes))
    }

    fn compare(&self, what: &str, found: Digest) -> Result<()> {
        match found == *self {
            true => Ok(()),
            false => Err(Error::Digest {
                what: what.to_owned(),
                found: found.0,
                expected: self.0.clone(),
            }),
        }
    }
}

/// A stream that ends well only if its bytes are those that its digest stands for.
pub(super) struct Verified<R> {
    inner: R,
    what: &'static str,
    expected: Digest,
    hasher: Option<Sha256>,
    /// Bytes that may still come; more are not read.
    left: Option<u64>,
}

impl<R: Read> Verified<R> {
    pub(super) fn new(inner: R, what: &'static str, expected: Digest, size: Option<u64>) -> Self {
        Verified {
            inner,
            what,
            expected,
            hasher: Some(Sha256::new()),
            left: size,
        }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some(hasher) = &mut self.hasher else {
            return Ok(0);
        };
        let len = self.inner.read(buffer)?;
        hasher.update(&buffer[..len]);
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(len as u64).ok_or_else(|| {
                io::Error::other(Error::Container(format!(
                    "{} is longer than it says",
                    self.what
                )))
            })?;
        }
        if len == 0 {
            if let Some(hasher) = self.hasher.take() {
                let compared = self.expected.compare(self.what, Digest::finish(hasher));
                compared.map_err(io::Error::other)?;
            }
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_stream_ends_well_only_if_it_is_what_it_should_be() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), ABC);
        let read = |bytes: &'static [u8], size| {
            let mut all = Vec::new();
            Verified::new(bytes, "it", digest.clone(), size).read_to_end(&mut all)
        };
        assert_eq!(read(b"abc", Some(3)).unwrap(), 3);
        assert_eq!(read(b"abc", None).unwrap(), 3);
        assert!(read(b"abd", None)
            .unwrap_err()
            .to_string()
            .contains("is damaged"));
        assert!(read(b"ab", Some(3))
            .unwrap_err()
            .to_string()
            .contains("is damaged"));
        assert!(read(b"abcd", Some(3))
            .unwrap_err()
            .to_string()
            .contains("longer"));
    }

    #[test]
    fn only_digests_are_digests() {
        assert!(Digest::try_from(ABC.to_owned()).is_ok());
        for wrong in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "sha512:00",
            &ABC[1..],
            &ABC.to_uppercase(),
        ] {
            assert!(Digest::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
