//! `apppot image sign`.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use apppot_backends::image::{Image, ImageKind};
use apppot_backends::stamp::Stamp;
use apppot_snapshot::archive::Archive;
use ct_codecs::{Base64, Decoder};
use minisign::{PublicKey, SecretKey, SecretKeyBox};

use super::place;
use crate::cli::General;
use crate::failure::hinted;
use crate::output::Output;

/// Signs images and changes archives with the secret key in `key`, minisign's own when it is `None`.
///
/// # Errors
/// The key cannot be had, or a file cannot be read or is neither an image nor an archive.
pub(crate) fn sign(
    files: &[PathBuf],
    key: Option<&Path>,
    comment: Option<&str>,
    general: &General,
) -> Result<()> {
    let key = secret(key)?;
    let public = PublicKey::from_secret_key(&key).context("cannot use the secret key")?;
    for path in files {
        let failed = || format!("cannot sign '{}'", path.display());
        let signature = sign_one(path, &key, &public, comment).with_context(failed)?;
        if general.json {
            let value = serde_json::json!({ "file": path, "signature": signature, "key": public.to_base64() });
            crate::failure::print_out(&format!("{value}\n"));
        } else if !general.quiet {
            let signature = signature.display();
            crate::failure::say(&format!("{signature}: signed by {}", public.to_base64()));
        }
    }
    Ok(())
}

fn sign_one(
    path: &Path,
    key: &SecretKey,
    public: &PublicKey,
    comment: Option<&str>,
) -> Result<PathBuf> {
    // The signature is looked for beside the file that a link leads to.
    let real = std::fs::canonicalize(path)?;
    let file = File::open(&real)?;
    let stamp = Stamp::of(&file)?;
    check(&real)?;
    let signature = place(&real);
    let new = Output::begin(&signature, &[&real])?;
    let comment = match comment {
        Some(comment) => comment.to_owned(),
        None => usual_comment(&real),
    };
    // The public key shows whether the secret one is damaged: minisign writes no checksum of keys
    // without a password.
    let signed = minisign::sign(Some(public), key, &file, Some(&comment), None)?;
    stamp.check(&file, &real)?;
    new.write(|out| Ok(out.write_all(signed.to_string().as_bytes())?))?;
    new.keep()?;
    Ok(signature)
}

/// A signature says that somebody has looked: what cannot be used is not signed.
fn check(path: &Path) -> Result<()> {
    let image = match Image::open(path) {
        Ok(image) => image,
        Err(error) => {
            return match Archive::open(File::open(path)?) {
                Ok(_) => Ok(()),
                Err(apppot_snapshot::Error::NotArchive(_)) => {
                    Err(error).context("it is neither a changes archive nor an image")
                }
                Err(error) => Err(error.into()),
            }
        }
    };
    match image.kind {
        ImageKind::Directory => Err(hinted(
            "a directory cannot be signed",
            "make an image of it: apppot image import",
        )),
        _ => Ok(()),
    }
}

/// As minisign's own.
fn usual_comment(path: &Path) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let seconds = now.unwrap_or_default().as_secs();
    format!("timestamp:{seconds}\tfile:{name}\thashed")
}

fn secret(path: Option<&Path>) -> Result<SecretKey> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => default_key()?,
    };
    let failed = || format!("cannot use the secret key '{}'", path.display());
    let text = std::fs::read_to_string(&path).map_err(|error| {
        hinted(
            error.to_string(),
            "minisign -G makes a pair of keys; --key FILE names another one",
        )
    });
    let text = text.with_context(failed)?;
    let line = text.lines().nth(1).unwrap_or_default();
    let bytes = Base64::decode_to_vec(line.trim(), None).with_context(failed)?;
    let key = SecretKey::from_bytes(&bytes).with_context(failed)?;
    if !key.is_encrypted() {
        return Ok(key);
    }
    let password = password(&path)?;
    let boxed = SecretKeyBox::from_string(&text).with_context(failed)?;
    boxed.into_secret_key(Some(password)).with_context(failed)
}

/// Where minisign has it.
fn default_key() -> Result<PathBuf> {
    let directory = std::env::var_os("MINISIGN_CONFIG_DIR").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".minisign"));
    let directory = directory.or_else(home);
    let directory = directory.ok_or_else(|| hinted("no secret key is named", "use --key FILE"))?;
    Ok(directory.join("minisign.key"))
}

/// From the terminal, or the first line of standard input where that is none, as for minisign.
fn password(path: &Path) -> Result<String> {
    let failed = "cannot read the password";
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return rpassword::prompt_password(format!("Password of {}: ", path.display()))
            .context(failed);
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
