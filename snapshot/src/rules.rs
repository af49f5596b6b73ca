//! What is left out of a base and of changes: patterns as in gitignore(5), the last match decides.

use crate::entry::split;
use crate::{Error, Result};

/// What every base and archive leaves out, with the reason. `docs/snapshots.md` shows this list.
///
/// A path without a `*` names itself and all below it; `/*` at the end names what is in a directory
/// but not the directory.
pub const DEFAULTS: &[(&str, &[&str])] = &[
    (
        "filesystems that exist only while the system runs",
        &["/dev", "/proc", "/sys", "/run", "/lost+found"],
    ),
    (
        "temporary files",
        &["/tmp/*", "/var/tmp/*", "/var/lock", "/var/run"],
    ),
    (
        "caches that are made again",
        &[
            "/var/cache/*",
            "/var/lib/apt/lists/*",
            "/root/.cache",
            "/home/*/.cache",
        ],
    ),
    (
        "logs",
        &["/var/log/*", "/root/.*_history", "/home/*/.*_history"],
    ),
    (
        "the machine's identity",
        &[
            "/etc/machine-id",
            "/var/lib/dbus/machine-id",
            "/etc/hostname",
            "/etc/ssh/ssh_host_*_key",
            "/etc/ssh/ssh_host_*_key.pub",
        ],
    ),
    (
        "seeds of random numbers",
        &["/var/lib/systemd/random-seed", "/var/lib/urandom", "/.rnd"],
    ),
    ("what is mounted", &["/etc/mtab", "/etc/fstab"]),
    ("the job directory", &["/job"]),
];

/// AppPot's own files: never recorded, never replaced by a merge, whatever an archive says.
pub const OWN: &[&str] = &[
    "usr/bin/apppot-snap",
    "usr/sbin/apppot-init",
    "usr/lib/apppot",
    "var/lib/apppot",
    "etc/sudoers.d/apppot",
    ".apppot-changes",
];

/// The version of [`DEFAULTS`]: bases that were recorded under different lists are not alike.
pub(crate) const VERSION: u64 = 1;

/// Whether `path` is one of [`OWN`] or lies below one.
#[must_use]
pub fn is_own(path: &[u8]) -> bool {
    OWN.iter()
        .any(|own| crate::entry::is_within(path, own.as_bytes()))
}

/// A list of patterns.
#[derive(Debug, Clone)]
pub struct Rules {
    patterns: Vec<Pattern>,
    /// Whether there is more than the defaults.
    extended: bool,
    /// Whether AppPot has files of its own in the tree.
    is_root: bool,
}

/// What is to become of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the tree.
    Keep,
    /// It does not, nor does anything below it.
    Skip,
    /// It does not, but something below it may.
    Look,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// For the whole path, or for its last name.
    text: Vec<u8>,
    /// Whether `text` has wildcards.
    wild: bool,
    /// Whether it begins at the root.
    anchored: bool,
    /// Whether it means directories only.
    directory: bool,
    /// Whether what matches is kept.
    keep: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let defaults = DEFAULTS.iter().flat_map(|(_, patterns)| patterns.iter());
        Rules {
            patterns: defaults
                .filter_map(|text| Pattern::parse(text).ok().flatten())
                .collect(),
            extended: false,
            is_root: true,
        }
    }
}

impl Rules {
    /// No patterns: everything belongs to the tree, but AppPot's own files.
    #[must_use]
    pub fn everything() -> Self {
        Rules {
            patterns: Vec::new(),
            extended: false,
            is_root: true,
        }
    }

    /// No patterns, for a tree that is no root filesystem, or of which everything is wanted.
    #[must_use]
    pub fn of_nobody() -> Self {
        Rules {
            is_root: false,
            ..Self::everything()
        }
    }

    /// Adds the lines of an `.apppotignore` file.
    ///
    /// # Errors
    /// A line is no pattern.
    pub fn add_lines(&mut self, text: &str) -> Result<()> {
        text.lines().try_for_each(|line| self.add(line))
    }

    /// Adds a pattern to leave out; after `!`, one to keep.
    ///
    /// # Errors
    /// It is no pattern.
    pub fn add(&mut self, text: &str) -> Result<()> {
        if let Some(pattern) = Pattern::parse(text)? {
            self.patterns.push(pattern);
            self.extended = true;
        }
        Ok(())
    }

    /// Adds a pattern to keep, whatever patterns before it say.
    ///
    /// # Errors
    /// It is no pattern.
    pub fn include(&mut self, text: &str) -> Result<()> {
        self.add(&format!("!{text}"))
    }

    /// Whether there is more than the defaults.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// What is to become of a path whose directory is `within` this verdict.
    #[must_use]
    pub fn judge(&self, path: &[u8], is_directory: bool, within: Verdict) -> Verdict {
        if path.is_empty() {
            return Verdict::Keep;
        }
        if (self.is_root && is_own(path)) || within == Verdict::Skip {
            return Verdict::Skip;
        }
        let name = split(path).map_or(path, |(_, name)| name);
        let decided = self
            .patterns
            .iter()
            .rev()
            .find(|pattern| pattern.matches(path, name, is_directory));
        let keep = decided.map_or(within == Verdict::Keep, |pattern| pattern.keep);
        match keep {
            true => Verdict::Keep,
            false if is_directory && self.may_keep_below(path) => Verdict::Look,
            false => Verdict::Skip,
        }
    }

    /// What is to become of a path, judged with all its directories.
    #[must_use]
    pub fn judge_whole(&self, path: &[u8], is_directory: bool) -> Verdict {
        let mut verdict = Verdict::Keep;
        for (at, byte) in path.iter().enumerate() {
            if *byte == b'/' {
                verdict = self.judge(&path[..at], true, verdict);
            }
        }
        self.judge(path, is_directory, verdict)
    }

    /// Whether a pattern may keep something below a directory that is left out.
    fn may_keep_below(&self, directory: &[u8]) -> bool {
        let may = |pattern: &Pattern| {
            let literal = pattern.literal();
            pattern.keep
                && (!pattern.anchored
                    || literal.starts_with(directory)
                    || directory.starts_with(literal))
        };
        self.patterns.iter().any(may)
    }
}

impl Pattern {
    /// Nothing for a comment or an empty line.
    fn parse(line: &str) -> Result<Option<Self>> {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let (keep, rest) = match line.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let (directory, rest) = match rest.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let anchored = rest.contains('/');
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        // Braces mean themselves in gitignore(5).
        let text = rest.replace('{', "\\{").replace('}', "\\}");
        let flaw = match fast_glob::validate(text.as_bytes()) {
            Err(error) => Some(error.to_string()),
            Ok(()) if rest.is_empty() => Some(String::from("it names nothing")),
            Ok(()) => None,
        };
        if let Some(reason) = flaw {
            let pattern = line.to_owned();
            return Err(Error::Pattern { pattern, reason });
        }
        let wild = text.contains(['*', '?', '[', '\\']);
        Ok(Some(Pattern {
            text: text.into_bytes(),
            wild,
            anchored,
            directory,
            keep,
        }))
    }

    fn matches(&self, path: &[u8], name: &[u8], is_directory: bool) -> bool {
        if self.directory && !is_directory {
            return false;
        }
        let subject = if self.anchored { path } else { name };
        match self.wild {
            true => {
                subject.starts_with(self.literal()) && fast_glob::glob_match(&self.text, subject)
            }
            false => self.text == subject,
        }
    }

    /// What comes before the first wildcard.
    fn literal(&self) -> &[u8] {
        let wild = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
        let end = self.text.iter().position(wild);
        &self.text[..end.unwrap_or(self.text.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(rules: &Rules, path: &str) -> Verdict {
        rules.judge_whole(path.as_bytes(), path.ends_with("dir"))
    }

    #[test]
    fn the_defaults_leave_out_what_they_say() {
        let rules = Rules::default();
        for path in [
            "proc/1/status",
            "tmp/x",
            "var/cache/apt/a.bin",
            "etc/machine-id",
            "etc/ssh/ssh_host_rsa_key",
            "home/ada/.cache/x",
            "home/ada/.bash_history",
            "usr/lib/apppot/x",
        ] {
            assert_eq!(verdict(&rules, path), Verdict::Skip, "{path}");
        }
        for path in [
            "",
            "tmp",
            "var/cache",
            "etc/passwd",
            "home/ada/.config",
            "devices",
        ] {
            assert_eq!(verdict(&rules, path), Verdict::Keep, "{path}");
        }
    }

    #[test]
    fn every_default_is_a_pattern() {
        for (_, patterns) in DEFAULTS {
            for pattern in *patterns {
                assert!(Pattern::parse(pattern).unwrap().is_some(), "{pattern}");
            }
        }
    }

    #[test]
    fn the_last_match_decides() {
        let mut rules = Rules::default();
        rules
            .add_lines("# data\n\n*.o\n!keep.o\n/srv/**/raw\nbuild_dir/\n/a{b}\n")
            .unwrap();
        rules.include("/var/log/mine").unwrap();
        for (path, keep) in [
            ("x/y.o", false),
            ("x/keep.o", true),
            ("srv/a/b/raw", false),
            ("srv/raw", false),
            ("raw", true),
            ("x/build_dir", false),
            ("a{b}", false),
            ("ab", true),
            ("var/log/mine", true),
            ("var/log/mine/too", true),
            ("var/log/other", false),
        ] {
            let kept = verdict(&rules, path) == Verdict::Keep;
            assert_eq!(kept, keep, "{path}");
        }
    }

    #[test]
    fn a_directory_is_looked_into_for_what_is_kept_below() {
        let mut rules = Rules::default();
        assert_eq!(verdict(&rules, "var/log/a-dir"), Verdict::Skip);
        rules.include("/var/log/a-dir/x").unwrap();
        assert_eq!(verdict(&rules, "var/log/a-dir"), Verdict::Look);
        assert_eq!(verdict(&rules, "var/log/b-dir"), Verdict::Skip);
    }

    #[test]
    fn bad_patterns_are_errors() {
        for bad in ["[", "!", "/", "a\\"] {
            assert!(Rules::default().add(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn own_files_cannot_be_included() {
        let mut rules = Rules::everything();
        rules.include("/usr/lib/apppot").unwrap();
        assert_eq!(verdict(&rules, "usr/lib/apppot"), Verdict::Skip);
    }
}
