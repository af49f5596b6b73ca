//! The configuration: option > environment > project > user > site > batch system > built-in.

mod demand;
mod files;
mod table;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use self::files::SITE;
pub(crate) use self::table::{Config, Values, Word};
use crate::batch;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Option,
    Variable(&'static str),
    File(PathBuf),
    Batch(&'static str),
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Option => f.write_str("option"),
            Origin::Variable(name) => write!(f, "environment ({name})"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Batch(name) => write!(f, "batch system ({name})"),
            Origin::BuiltIn => f.write_str("built-in"),
        }
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// One layer of values, the strongest first in a list of them.
type Layers = Vec<(Origin, Values)>;

impl Config {
    /// The configuration for a job in `jobdir`, under `options`.
    ///
    /// # Errors
    /// A file or variable that holds something else than it should; file and line are named.
    pub(crate) fn load(options: Values, jobdir: &Path) -> Result<Self> {
        let mut layers = vec![(Origin::Option, options)];
        layers.extend(variables()?);
        layers.extend(files::layers(jobdir)?);
        layers.extend(batch::grant());
        Ok(Self::merge(&layers))
    }

    /// Of each value the strongest layer's, but for demands, which the weakest has.
    fn merge(layers: &Layers) -> Self {
        let mut config = Self::strongest(layers);
        (config.require_signature, config.trusted_keys) = demand::merge(layers);
        config
    }
}

/// One line of `apppot config`.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) origin: String,
}

/// `APPPOT_…`, a layer for each variable so that its origin is known.
fn variables() -> Result<Layers> {
    let mut layers = Layers::new();
    for &(name, read) in table::VARIABLES {
        let Some(text) = std::env::var_os(name).filter(|text| !text.is_empty()) else {
            continue;
        };
        let text = text
            .to_str()
            .with_context(|| format!("{name} is not UTF-8"))?;
        let values = read(text)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("the environment variable {name} cannot be used"))?;
        layers.push((Origin::Variable(name), values));
    }
    Ok(layers)
}

/// Variables that a job finds in its environment, where there may be another `apppot`.
const OF_JOBS: [&str; 2] = ["APPPOT_ID", "APPPOT_JOBDIR"];

/// Names of the environment that look like ours and mean nothing: most are misspelt.
pub(crate) fn unknown_variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let ours = names.filter(|name| name.starts_with("APPPOT_"));
    let known = |name: &&str| {
        let configured = table::VARIABLES.iter().any(|(other, _)| other == name);
        configured || OF_JOBS.contains(name)
    };
    let mut unknown: Vec<String> = ours.filter(|name| !known(&&name[..])).collect();
    unknown.sort();
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Cpus, Size};

    #[test]
    fn the_strongest_layer_wins_and_is_named() {
        let weak = Values {
            memory: Some(Size(1)),
            cpus: Some(Cpus(2)),
            ..Values::default()
        };
        let strong = Values {
            memory: Some(Size(3)),
            ..Values::default()
        };
        let config = Config::merge(&vec![
            (Origin::Option, strong),
            (Origin::Variable("APPPOT_X"), weak),
        ]);
        assert_eq!(config.memory.value, Some(Size(3)));
        assert_eq!(config.memory.origin, Origin::Option);
        assert_eq!(config.cpus.value, Cpus(2));
        assert_eq!(config.cpus.origin, Origin::Variable("APPPOT_X"));
        assert_eq!(config.image.origin, Origin::BuiltIn);
    }

    #[test]
    fn every_variable_sets_its_own_key() {
        for (name, text, key) in [
            ("APPPOT_IMAGE", "a.img", "image"),
            ("APPPOT_BACKEND", "uml", "backend"),
            ("APPPOT_CONNECT", "qemu:///session", "connect"),
            ("APPPOT_KERNEL", "/k", "kernel"),
            ("APPPOT_MEMORY", "1G", "memory"),
            ("APPPOT_MEM", "1G", "memory"),
            ("APPPOT_CPUS", "2", "cpus"),
            ("APPPOT_CONTAINMENT", "off", "containment"),
            ("APPPOT_SECCOMP", "off", "seccomp"),
            ("APPPOT_NETWORK", "user", "network"),
            ("APPPOT_TIME_LIMIT", "2h", "time-limit"),
            ("APPPOT_GRACE", "3s", "grace"),
            ("APPPOT_CHANNEL", "link", "channel"),
            ("APPPOT_EC2_BUCKET", "b", "ec2-bucket"),
            ("APPPOT_EC2_TYPE", "t", "ec2-type"),
            ("APPPOT_EC2_SUBNET", "s", "ec2-subnet"),
            ("APPPOT_EC2_KEY", "k", "ec2-key"),
            ("APPPOT_EC2_DISK", "20G", "ec2-disk"),
            ("APPPOT_EC2_SPOT", "true", "ec2-spot"),
        ] {
            let read = table::VARIABLES.iter().find(|(other, _)| *other == name);
            let values = read.unwrap().1(text).unwrap();
            let config = Config::merge(&vec![(Origin::Variable(name), values)]);
            let set: Vec<Row> = config.rows();
            let set: Vec<&Row> = set.iter().filter(|row| row.origin != "built-in").collect();
            assert_eq!(set.len(), 1, "{name}");
            assert_eq!((set[0].key, set[0].value.as_str()), (key, text));
        }
    }
}
