//! The AWS tools' files: sections in brackets, `key = value` lines.

use std::path::Path;

use crate::{Error, Result};

/// One of the files; without sections when there is none.
#[derive(Default)]
pub(crate) struct Profiles(Vec<(String, Vec<(String, String)>)>);

impl Profiles {
    /// Reads a file.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io(format!("read '{}'", path.display()))(error)),
        }
    }

    fn parse(text: &str) -> Self {
        let mut sections: Vec<(String, Vec<_>)> = Vec::new();
        for line in text.lines() {
            // An indented line is a setting within a setting: none of ours.
            if line.starts_with(['#', ';', ' ', '\t']) {
                continue;
            }
            let line = line.trim();
            if let Some(name) = line.strip_prefix('[') {
                let name = name.split_once(']').map_or(name, |(name, _)| name);
                let words: Vec<&str> = name.split_whitespace().collect();
                sections.push((words.join(" "), Vec::new()));
            } else if let (Some((key, value)), Some((_, settings))) =
                (line.split_once('='), sections.last_mut())
            {
                settings.push((key.trim().to_lowercase(), value.trim().to_owned()));
            }
        }
        Profiles(sections)
    }

    pub(crate) fn has(&self, section: &str) -> bool {
        self.0.iter().any(|(name, _)| name == section)
    }

    /// The setting in the section; the last one counts, an empty one is none.
    pub(crate) fn get(&self, section: &str, key: &str) -> Option<String> {
        let named = self.0.iter().rev().filter(|(name, _)| name == section);
        let mut settings = named.flat_map(|(_, settings)| settings.iter().rev());
        let (_, value) = settings.find(|(name, _)| name == key)?;
        Some(value.clone()).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_settings() {
        let text = "# c\n[default]\nregion=a\n; d\nS3 =\n  region = nested\n\n[profile  x]\n\
                    region = b = c \nREGION_2=\n[default]\noutput = json";
        let profiles = Profiles::parse(text);
        assert_eq!(profiles.get("default", "region").as_deref(), Some("a"));
        assert_eq!(profiles.get("default", "output").as_deref(), Some("json"));
        assert_eq!(profiles.get("default", "s3"), None);
        assert_eq!(
            profiles.get("profile x", "region").as_deref(),
            Some("b = c")
        );
        assert_eq!(profiles.get("profile x", "region_2"), None);
        assert!(profiles.has("profile x") && !profiles.has("x"));
    }

    #[test]
    fn a_file_that_is_missing_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let profiles = Profiles::read(&directory.path().join("none")).unwrap();
        assert!(!profiles.has("default"));
        assert!(Profiles::read(directory.path()).is_err());
    }
}
