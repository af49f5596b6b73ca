//! Names of images in registries: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`.

use std::fmt;

use crate::error::shown;
use crate::oci::Digest;
use crate::{Error, Result};

/// The registry of names that name none.
const DOCKER: &str = "docker.io";
/// Where Docker's registry really is.
const DOCKER_HOST: &str = "registry-1.docker.io";

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host, and port, as they were named.
    pub registry: String,
    /// Name of the repository.
    pub repository: String,
    /// Tag, `latest` unless named.
    pub tag: String,
    /// Digest of the manifest; then the tag does not matter.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a name.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            let what = format!("'{}' names no image in a registry", shown(text.as_bytes()));
            Error::Container(what)
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = Digest::try_from(digest.to_owned()).map_err(Error::Container)?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, tag),
            _ => (rest, "latest"),
        };
        let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
        let (registry, repository) = match rest.split_once('/') {
            Some((first, name)) if is_host(first) => (first, name.to_owned()),
            Some(_) => (DOCKER, rest.to_owned()),
            None => (DOCKER, format!("library/{rest}")),
        };
        let is_name = |text: &str, more: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !text.is_empty() && text.len() <= 255 && text.chars().all(allowed)
        };
        let parts_are_names = repository.split('/').all(|part| {
            is_name(part, "._-") && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        });
        if !parts_are_names || !is_name(tag, "._-") || !is_name(registry, ".-:[]") {
            return Err(wrong());
        }
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag: tag.to_owned(),
            digest,
        })
    }

    /// The host, and port, to be asked.
    pub(super) fn host(&self) -> &str {
        match self.registry.as_str() {
            DOCKER => DOCKER_HOST,
            other => other,
        }
    }

    /// Whether the registry is on this machine: such ones speak plain HTTP.
    pub(super) fn is_local(&self) -> bool {
        let host = match self.registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.registry,
        };
        host == "localhost" || host == "[::1]" || host.starts_with("127.")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (registry, repository, tag) = (&self.registry, &self.repository, &self.tag);
        match &self.digest {
            Some(digest) => write!(f, "{registry}/{repository}@{digest}"),
            None => write!(f, "{registry}/{repository}:{tag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, read) in [
            ("debian", String::from("docker.io/library/debian:latest")),
            ("debian:12", String::from("docker.io/library/debian:12")),
            ("org/app:v1", String::from("docker.io/org/app:v1")),
            ("localhost/app", String::from("localhost/app:latest")),
            ("localhost:5000/a/b:c", String::from("localhost:5000/a/b:c")),
            ("quay.io/a/b", String::from("quay.io/a/b:latest")),
            (&format!("x.org/a:t@{digest}"), format!("x.org/a@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), read);
        }
        for text in [
            "",
            ":",
            "/x",
            "a/",
            "a//b",
            "a/../b",
            "a b",
            "x.org/",
            "a:b c",
            "a@sha256:0",
            "h.org/../../x",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_local() {
        for (text, local) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("localhost.org/a", false),
            ("example.org:5000/a", false),
            ("a", false),
        ] {
            assert_eq!(Reference::parse(text).unwrap().is_local(), local, "{text}");
        }
    }
}
