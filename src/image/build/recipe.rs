//! Recipes: what an image is to be, as TOML.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde::Deserialize;

use super::finished::may_be_put;
use crate::failure::hinted;
use crate::files;
use crate::units::Size;

/// The recipes that travel with the command.
const SHIPPED: [(&str, &str); 3] = [
    ("debian", include_str!("../../../images/debian.toml")),
    ("fortran", include_str!("../../../images/fortran.toml")),
    (
        "python-plot",
        include_str!("../../../images/python-plot.toml"),
    ),
];

/// Bytes of a recipe.
const LIMIT: u64 = 1 << 20;

/// No Debian fits into less, bytes.
const LEAST_SIZE: Size = Size(64 << 20);

/// The accounts that every Debian has (/usr/share/base-passwd/passwd.master), and apt's.
const ACCOUNTS: [&str; 20] = [
    "root",
    "daemon",
    "bin",
    "sys",
    "sync",
    "games",
    "man",
    "lp",
    "mail",
    "news",
    "uucp",
    "proxy",
    "www-data",
    "backup",
    "list",
    "irc",
    "gnats",
    "_apt",
    "nobody",
    "messagebus",
];

/// A recipe; `docs/images.md` describes the keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Recipe {
    /// What the image is called when nobody says how.
    #[serde(skip)]
    pub(super) name: String,
    /// Where it was read: the recipe's own files are found from there.
    #[serde(skip)]
    file: Option<PathBuf>,
    /// What it says, as it is written.
    #[serde(skip)]
    pub(super) text: String,
    distribution: Distribution,
    /// The release, such as bookworm; `None`: that of this machine.
    pub(super) suite: Option<String>,
    /// Where packages come from; `None`: where this machine has them from.
    pub(super) mirror: Option<String>,
    /// Whether manual pages, documentation and translations are installed.
    pub(super) documentation: bool,
    pub(super) packages: Vec<String>,
    /// Where a file or directory goes, and where it is.
    files: BTreeMap<PathBuf, PathBuf>,
    /// What root's shell runs in the appliance, with a network.
    pub(super) commands: Vec<String>,
    /// The account that jobs run under.
    pub(super) user: Option<String>,
    /// The script that runs when there is no command.
    pub(super) autorun: Option<String>,
    /// Size of the filesystem.
    pub(super) size: Option<Size>,
    pub(super) labels: BTreeMap<String, String>,
}

/// Distributions that images can be built of.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Distribution {
    #[default]
    Debian,
}

impl Recipe {
    /// The recipe that `word` names: a file, or one of those that travel with the command.
    pub(super) fn find(word: &Path) -> Result<Self> {
        let shipped = SHIPPED
            .iter()
            .find(|(name, _)| word.as_os_str() == *name && !word.exists());
        if let Some((name, text)) = shipped {
            let recipe = Self::parse(text, word)?;
            return Ok(Recipe {
                name: (*name).to_owned(),
                ..recipe
            });
        }
        if word.symlink_metadata().is_err() {
            let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
            return Err(hinted(
                format!("there is no recipe '{}'", word.display()),
                format!("name a file, or one of {}", names.join(", ")),
            ));
        }
        let cannot = || format!("cannot read recipe '{}'", word.display());
        let file = files::open_regular(word).with_context(cannot)?;
        let text = files::read_bounded(file, LIMIT).with_context(cannot)?;
        let text = String::from_utf8(text).with_context(cannot)?;
        let stem = word.file_stem().unwrap_or_default();
        let recipe = Self::parse(&text, word)?;
        Ok(Recipe {
            name: stem.to_string_lossy().into_owned(),
            file: Some(word.to_owned()),
            ..recipe
        })
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let keys = "docs/images.md describes the keys of a recipe";
        let mut recipe: Recipe = files::toml(text, path, keys)?;
        recipe.text = text.to_owned();
        recipe.check().map_err(|why| {
            let message = format!("{}: {why}", path.display());
            hinted(message, keys)
        })?;
        Ok(recipe)
    }

    /// What becomes words of other programs is what they expect.
    fn check(&self) -> std::result::Result<(), String> {
        let made_of = |text: &str, others: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        let suite = self.suite.iter().map(|name| ("suite", name, "-"));
        let mirror = self.mirror.iter().map(|uri| ("mirror", uri, "+.:/~@%_-"));
        let packages = self.packages.iter().map(|name| ("package", name, "+.:-"));
        for (what, text, others) in suite.chain(mirror).chain(packages) {
            if !made_of(text, others) {
                return Err(format!("'{text}' cannot be a {what}'s name"));
            }
        }
        for target in self.files.keys() {
            let normal = |part| matches!(part, Component::RootDir | Component::Normal(_));
            let is_file = target.file_name().is_some() && target.components().all(normal);
            let shown = target.display();
            if !target.is_absolute() || !is_file {
                return Err(format!(
                    "files: '{shown}' is no path in the image, such as /etc/motd"
                ));
            }
            if !may_be_put(target) {
                return Err(format!("files: '{shown}' does not stay in an image"));
            }
        }
        if let Some(name) = &self.user {
            check_account(name)?;
        }
        if let Some(size) = self.size {
            check_size(size)?;
        }
        if self.commands.iter().any(|command| command.contains('\0')) {
            return Err(String::from("commands: a command has a zero byte"));
        }
        if let Some(script) = &self.autorun {
            if !script.starts_with("#!") {
                return Err(String::from(
                    "autorun is a script, whose first line names what runs it: #!/bin/sh",
                ));
            }
        }
        Ok(())
    }

    /// Everything on this host that the image is made of.
    pub(super) fn inputs(&self) -> Vec<PathBuf> {
        let Some(file) = &self.file else {
            return Vec::new();
        };
        let beside = |source: &PathBuf| file.with_file_name("").join(source);
        let sources = self.files.values().map(beside);
        std::iter::once(file.clone()).chain(sources).collect()
    }

    /// Whether a kernel comes with the packages, as far as the recipe tells.
    pub(super) fn may_have_a_kernel(&self) -> bool {
        let is_kernel = |name: &String| name.starts_with("linux-image");
        !self.commands.is_empty() || self.packages.iter().any(is_kernel)
    }

    /// The recipe's files: where each goes, without the first slash, whether it can be executed, and
    /// what is in it.
    pub(super) fn contents(&self) -> Result<Vec<(PathBuf, bool, Vec<u8>)>> {
        let mut found = Vec::new();
        if self.files.is_empty() {
            return Ok(found);
        }
        let file = self.file.as_deref().context("this recipe has no files")?;
        for (target, source) in &self.files {
            let source = file.with_file_name("").join(source);
            let target = target.strip_prefix("/").unwrap_or(target);
            collect(&source, target, &mut found)
                .with_context(|| format!("cannot read '{}' of the recipe", source.display()))?;
        }
        Ok(found)
    }
}

/// An account that useradd(8) makes and no image has.
fn check_account(name: &str) -> std::result::Result<(), String> {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let is_name = name.starts_with(first)
        && name
            .chars()
            .all(|c| first(c) || c.is_ascii_digit() || c == '-');
    if !is_name || name.len() > 32 {
        return Err(format!(
            "'{name}' cannot be a user's name: up to 32 of a-z, 0-9, _ and -"
        ));
    }
    match ACCOUNTS.contains(&name) {
        true => Err(format!(
            "user: every Debian has an account '{name}'; name one for jobs, such as user"
        )),
        false => Ok(()),
    }
}

/// Whether an image of that size can be built at all.
pub(super) fn check_size(size: Size) -> std::result::Result<(), String> {
    match size < LEAST_SIZE {
        true => Err(format!(
            "{size} is too small: no Debian fits into less than {LEAST_SIZE}"
        )),
        false => Ok(()),
    }
}

/// Adds a file, or all files of a directory.
fn collect(source: &Path, target: &Path, found: &mut Vec<(PathBuf, bool, Vec<u8>)>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(source)?;
    if metadata.is_file() {
        let executable = metadata.permissions().mode() & 0o111 != 0;
        found.push((target.to_owned(), executable, std::fs::read(source)?));
        return Ok(());
    }
    if !metadata.is_dir() {
        bail!("it is neither a file nor a directory");
    }
    let mut names: Vec<_> = std::fs::read_dir(source)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<_>>()?;
    names.sort();
    for name in names {
        let inner = source.join(&name);
        if inner.is_dir() && inner.is_symlink() {
            bail!("'{}' is a link to a directory", inner.display());
        }
        collect(&inner, &target.join(&name), found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let error = Recipe::parse(text, Path::new("a.toml")).unwrap_err();
        error.to_string()
    }

    #[test]
    fn shipped_recipes_can_be_read() {
        for (name, _) in SHIPPED {
            assert_eq!(Recipe::find(Path::new(name)).unwrap().name, name);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, expected) in [
            ("\npackage = []", "a.toml:2: unknown field `package`"),
            (
                "suite = \"sid\"\nsize = \"big\"",
                "a.toml:2: 'big' is no size",
            ),
            (
                "distribution = \"hat\"",
                "a.toml:1: unknown variant `hat`, expected `debian`",
            ),
            ("suite = 'x", "a.toml:1: "),
            (
                "packages = [\"a\", \"-o\"]",
                "'-o' cannot be a package's name",
            ),
            ("packages = [\"?essential\"]", "cannot be a package's name"),
            ("suite = \"a b\"", "cannot be a suite's name"),
            ("mirror = \"deb [x]\"", "cannot be a mirror's name"),
            ("user = \"$(x)\"", "cannot be a user's name"),
            ("user = \"A.b\"", "cannot be a user's name"),
            ("user = \"root\"", "every Debian has an account 'root'"),
            ("size = \"1K\"", "1K is too small"),
            ("size = 0", "0 is too small"),
            ("commands = [\"a\\u0000\"]", "a zero byte"),
            ("[files]\n\"/tmp/x\" = \"x\"", "does not stay"),
            ("autorun = \"echo\"", "first line names what runs it"),
            ("[files]\n\"etc/motd\" = \"x\"", "is no path in the image"),
            ("[files]\n\"/../x\" = \"x\"", "is no path in the image"),
        ] {
            let found = refusal(text);
            assert!(found.contains(expected), "{text}: {found}");
        }
    }

    #[test]
    fn files_are_beside_the_recipe() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("tree/below")).unwrap();
        std::fs::write(place.path().join("tree/below/x"), "1").unwrap();
        std::fs::write(place.path().join("motd"), "2").unwrap();
        let path = place.path().join("own.toml");
        std::fs::write(
            &path,
            "[files]\n\"/etc/motd\" = \"motd\"\n\"/srv\" = \"tree\"\n",
        )
        .unwrap();
        let recipe = Recipe::find(&path).unwrap();
        assert_eq!(recipe.name, "own");
        let expected = [
            (PathBuf::from("etc/motd"), false, b"2".to_vec()),
            (PathBuf::from("srv/below/x"), false, b"1".to_vec()),
        ];
        assert_eq!(recipe.contents().unwrap(), expected);
        std::fs::remove_file(place.path().join("motd")).unwrap();
        let error = format!("{:#}", recipe.contents().unwrap_err());
        assert!(error.contains("motd' of the recipe"), "{error}");
    }
}
