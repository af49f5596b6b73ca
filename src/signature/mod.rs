//! Signatures of images and changes archives: minisign's format, in `FILE.minisig` beside FILE.
//!
//! Only prehashed signatures are known (Ed25519 of the BLAKE2b of the file): they are verified in one
//! pass without keeping the file in memory.

mod demand;
mod sign;
mod verified;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use apppot_backends::stamp::Stamp;
use minisign_verify::{Error, PublicKey, Signature};
use serde::Deserialize;

pub(crate) use self::demand::Demand;
pub(crate) use self::sign::sign;
use self::verified::Verified;
use crate::failure::hinted;

/// Longer signature files are not read.
const MAX_SIGNATURE: u64 = 16 << 10;
/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

/// A public key as minisign prints it: `RW…`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Key(String);

impl Key {
    fn parsed(&self) -> Result<PublicKey> {
        PublicKey::from_base64(&self.0).map_err(|_| no_key(&self.0))
    }

    /// A key, or the file that holds it.
    ///
    /// # Errors
    /// It is neither.
    pub(crate) fn from_argument(text: &str) -> Result<Self> {
        if let Ok(key) = Key::try_from(text.to_owned()) {
            return Ok(key);
        }
        let file = std::fs::read_to_string(text)
            .with_context(|| format!("'{text}' is no public key, and cannot be read as a file"))?;
        // A comment, then the key.
        let key = file.lines().nth(1).unwrap_or_default();
        Key::try_from(key.to_owned())
            .map_err(|_| anyhow::anyhow!("there is no public key in '{text}'"))
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let text = text.trim().to_owned();
        match PublicKey::from_base64(&text) {
            Ok(_) => Ok(Key(text)),
            Err(_) => Err(no_key(&text).to_string()),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn no_key(text: &str) -> anyhow::Error {
    anyhow::anyhow!("'{text}' is no public key of minisign (56 characters that begin with RW)")
}

/// A signature that is valid.
#[derive(Debug)]
pub(crate) struct Signed {
    /// By whom.
    pub(crate) key: Key,
    /// What the signer said, and signed too.
    pub(crate) comment: String,
}

/// Where the signature of `path` is.
pub(crate) fn place(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Verifies the signature of `file`, which is open and whose real name is `path`, by any of `keys`.
/// What is verified is the open file in its present state, which its [`Stamp`] tells.
///
/// # Errors
/// There is no signature, it is by no such key, or of another content; or the file changed meanwhile.
pub(crate) fn verify(
    file: &File,
    path: &Path,
    keys: &[Key],
    verified: &Verified,
) -> Result<Signed> {
    let text = read(path)?;
    let damaged = || format!("'{}' is no signature of minisign", place(path).display());
    let signature = Signature::decode(&text).with_context(damaged)?;
    let stamp = settled(file).with_context(|| format!("cannot examine '{}'", path.display()))?;
    for key in keys {
        let signed = || Signed {
            key: key.clone(),
            comment: printable(signature.trusted_comment()),
        };
        let parsed = key.parsed()?;
        let mut verifier = match parsed.verify_stream(&signature) {
            Ok(verifier) => verifier,
            Err(Error::UnexpectedKeyId) => continue,
            Err(Error::UnsupportedLegacyMode) => return Err(hinted(
                format!("'{}' is not prehashed", place(path).display()),
                "sign it again, with minisign 0.10 or newer, with -H, or with apppot image sign",
            )),
            Err(error) => return Err(error).with_context(damaged),
        };
        if verified.has(&stamp, file, key, &text) {
            return Ok(signed());
        }
        hash(file, &mut |piece| verifier.update(piece))
            .with_context(|| format!("cannot read '{}'", path.display()))?;
        stamp.check(file, path)?;
        if verifier.finalize().is_err() {
            return Err(hinted(
                format!("'{}' is not what was signed", path.display()),
                "it has been changed or damaged since: copy it again, with its signature",
            ));
        }
        verified.remember(&stamp, file, key, &text);
        return Ok(signed());
    }
    Err(hinted(
        format!("'{}' is by no trusted key", place(path).display()),
        "'apppot config' shows the trusted keys",
    ))
}

fn read(path: &Path) -> Result<String> {
    let place = place(path);
    let file = File::open(&place).map_err(|error| match error.kind() {
        ErrorKind::NotFound => hinted(
            format!("'{}' is not signed", path.display()),
            format!(
                "its signature is looked for in '{}'; apppot image sign makes one",
                place.display()
            ),
        ),
        _ => anyhow::Error::new(error).context(format!("cannot open '{}'", place.display())),
    })?;
    let mut text = String::new();
    let read = file.take(MAX_SIGNATURE).read_to_string(&mut text);
    read.with_context(|| format!("cannot read '{}'", place.display()))?;
    Ok(text)
}

/// The file's stamp, once a change to come would show in it: clocks of filesystems tick every 4 ms or
/// 10 ms.
fn settled(file: &File) -> Result<Stamp> {
    const TICKS: std::time::Duration = std::time::Duration::from_millis(25);
    if !file.metadata()?.is_file() {
        bail!("only regular files have signatures");
    }
    let stamp = Stamp::of(file)?;
    if stamp.age() < TICKS {
        std::thread::sleep(TICKS);
    }
    Ok(Stamp::of(file)?)
}

/// Gives the content to `take`, in pieces.
fn hash(file: &File, take: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                take(&buffer[..len]);
                offset += len as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Signed does not mean that a terminal may obey it.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Verifies files for `apppot image verify --signature`.
///
/// # Errors
/// The first that fails.
pub(crate) fn verify_files(files: &[PathBuf], keys: &[Key], as_json: bool) -> Result<()> {
    if keys.is_empty() {
        return Err(hinted(
            "no public key is trusted",
            "name one with --public-key, or some as trusted-keys in the configuration",
        ));
    }
    for path in files {
        let failed = || format!("cannot verify '{}'", path.display());
        let real = std::fs::canonicalize(path).with_context(failed)?;
        let file = File::open(&real).with_context(failed)?;
        let signed = verify(&file, &real, keys, &Verified::afresh()).with_context(failed)?;
        let Signed { key, comment } = signed;
        crate::failure::print_out(&match as_json {
            true => format!(
                "{}\n",
                serde_json::json!({ "file": path, "key": key.to_string(), "comment": comment })
            ),
            false => format!("{}: signed by {key} ({comment})\n", path.display()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
