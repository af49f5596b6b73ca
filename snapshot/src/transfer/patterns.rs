//! Which files travel.

use crate::rules::{Rules, Verdict};
use crate::Result;

/// Patterns as in gitignore(5), but for what is wanted: what matches travels, and all below it; what
/// matches a pattern after `!` does not. The last match decides. Without patterns everything travels;
/// where there are none but of the second kind, everything else.
#[derive(Debug, Clone)]
pub struct Patterns {
    rules: Rules,
    /// What is to become of what no pattern matches.
    otherwise: Verdict,
}

impl Default for Patterns {
    fn default() -> Self {
        Patterns {
            rules: Rules::of_nobody(),
            otherwise: Verdict::Keep,
        }
    }
}

impl Patterns {
    /// Reads patterns.
    ///
    /// # Errors
    /// One is no pattern.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self> {
        let mut all = Self::default();
        for pattern in patterns {
            match pattern.as_ref().strip_prefix('!') {
                Some(unwanted) => all.rules.add(unwanted)?,
                None => {
                    all.rules.include(pattern.as_ref())?;
                    all.otherwise = Verdict::Look;
                }
            }
        }
        Ok(all)
    }

    /// Whether `path` travels.
    #[must_use]
    pub fn keep(&self, path: &[u8], is_directory: bool) -> bool {
        let mut verdict = self.otherwise;
        for (at, byte) in path.iter().enumerate() {
            if *byte == b'/' {
                verdict = self.rules.judge(&path[..at], true, verdict);
            }
        }
        self.rules.judge(path, is_directory, verdict) == Verdict::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_travels() {
        let all: &[(&[&str], &[&str], &[&str])] = &[
            (&[], &["a", "a/b", "usr/lib/apppot"], &[]),
            (&["*.csv"], &["x.csv", "d/e/x.csv"], &["x", "d", "d/e"]),
            (&["data"], &["data", "data/x", "d/data/y"], &["x"]),
            (&["/data"], &["data/x"], &["d/data", "d/data/y"]),
            (&["!*.tmp"], &["a", "d/b"], &["a.tmp", "d/b.tmp"]),
            (&["out", "!*.tmp"], &["out/a"], &["out/a.tmp", "b"]),
            (&["out/*.csv"], &["out/a.csv"], &["out/b", "a.csv"]),
        ];
        for (patterns, travels, stays) in all {
            let read = Patterns::new(patterns).unwrap();
            let keep = |path: &&&str| read.keep(path.as_bytes(), !path.contains('.'));
            assert_eq!(
                travels.iter().find(|path| !keep(path)),
                None,
                "{patterns:?}"
            );
            assert_eq!(stays.iter().find(keep), None, "{patterns:?}");
        }
        assert!(Patterns::new(&["["]).is_err());
    }
}
