//! Indexes, manifests and configurations.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Digest, Platform};
use crate::error::shown;
use crate::{Error, Result};

/// A blob, as others speak of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its digest.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    #[serde(default)]
    platform: Option<DescribedPlatform>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A blob of that digest and length.
    #[must_use]
    pub fn new(digest: Digest, size: u64) -> Self {
        Descriptor {
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct DescribedPlatform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

fn malformed(what: &str) -> impl Fn(serde_json::Error) -> Error + '_ {
    move |error| Error::Container(format!("{what} is malformed: {error}"))
}

impl Index {
    /// The index that `document` is; `None` for something else, which is then a manifest.
    pub(super) fn parse(document: &[u8]) -> Result<Option<Self>> {
        let value: Value = serde_json::from_slice(document).map_err(malformed("the manifest"))?;
        match value.get("manifests") {
            Some(_) => serde_json::from_value(value)
                .map(Some)
                .map_err(malformed("the index")),
            None => Ok(None),
        }
    }

    /// The manifest for the platform. An index of one that names no platform has that one.
    pub(super) fn choose(&self, platform: &Platform) -> Result<Descriptor> {
        let fits = |found: &DescribedPlatform| {
            found.os == platform.os && found.architecture == platform.architecture
        };
        let mut all = self.manifests.iter();
        if let Some(found) = all.find(|one| one.platform.as_ref().is_some_and(fits)) {
            return Ok(found.clone());
        }
        if let [Descriptor { platform: None, .. }] = &self.manifests[..] {
            return Ok(self.manifests[0].clone());
        }
        let others = self
            .manifests
            .iter()
            .filter_map(|one| one.platform.as_ref());
        let others: Vec<String> = others
            .map(|found| shown(format!("{}/{}", found.os, found.architecture).as_bytes()))
            .collect();
        Err(Error::Container(format!(
            "there is no image for {platform}, only for {}",
            others.join(", ")
        )))
    }
}

impl Manifest {
    pub(super) fn parse(document: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(document).map_err(malformed("the manifest"))?;
        if value
            .get("schemaVersion")
            .is_some_and(|version| *version == 1)
        {
            let what = "its manifest is of Docker's version 1, which has no digests of layers";
            return Err(Error::Container(what.to_owned()));
        }
        serde_json::from_value(value).map_err(malformed("the manifest"))
    }
}

/// The configuration of an image.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Architecture, as Go names it.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// When the image was made.
    #[serde(default)]
    pub created: Option<String>,
    /// What runs in it.
    #[serde(default)]
    config: Option<Process>,
    pub(super) rootfs: Rootfs,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Rootfs {
    pub(super) diff_ids: Vec<Digest>,
}

/// What runs in a container of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Process {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    /// Directory in which it starts; empty for the root.
    #[serde(default)]
    pub working_dir: String,
    /// Account or number under which it runs, maybe with a group after a colon; empty for root.
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Config {
    pub(super) fn parse(document: &[u8]) -> Result<Self> {
        serde_json::from_slice(document).map_err(malformed("the configuration"))
    }

    /// What runs in it.
    #[must_use]
    pub fn process(&self) -> Process {
        self.config.clone().unwrap_or_default()
    }
}

impl Process {
    /// The command: entrypoint and its arguments. Empty where the image names none.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        let parts = [&self.entrypoint, &self.cmd].into_iter().flatten();
        parts.flatten().cloned().collect()
    }

    /// Variables of the environment.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let all = self.env.iter().flatten();
        all.filter_map(|one| one.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Labels.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.labels.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROS: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn the_platform_decides() {
        let index = |platforms: &[&str]| {
            let one = |architecture: &&str| {
                format!(
                    r#"{{"digest":"{ZEROS}","size":1,"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
                )
            };
            let all: Vec<String> = platforms.iter().map(one).collect();
            let text = format!(r#"{{"manifests":[{}]}}"#, all.join(","));
            Index::parse(text.as_bytes()).unwrap().unwrap()
        };
        let platform = Platform {
            os: String::from("linux"),
            architecture: String::from("arm64"),
        };
        assert!(index(&["amd64", "arm64"]).choose(&platform).is_ok());
        let error = index(&["amd64", "s390x"]).choose(&platform).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no image for linux/arm64, only for linux/amd64, linux/s390x"
        );
        let nameless = format!(r#"{{"manifests":[{{"digest":"{ZEROS}","size":1}}]}}"#);
        let nameless = Index::parse(nameless.as_bytes()).unwrap().unwrap();
        assert!(nameless.choose(&platform).is_ok());
    }

    #[test]
    fn the_command_is_entrypoint_and_arguments() {
        let config = format!(
            r#"{{"config":{{"Entrypoint":["/e","1"],"Cmd":["2"],"Env":["A=b=c","X"],"Labels":null}},"rootfs":{{"diff_ids":["{ZEROS}"]}}}}"#
        );
        let process = Config::parse(config.as_bytes()).unwrap().process();
        assert_eq!(process.argv(), ["/e", "1", "2"]);
        assert_eq!(process.env(), [(String::from("A"), String::from("b=c"))]);
        assert!(Config::parse(br#"{"rootfs":{"diff_ids":["sha256:1"]}}"#).is_err());
    }
}
