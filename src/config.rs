//! The configuration: option > environment > project > user > site > batch system > built-in.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::spec::{Containment, Seccomp};
use serde::{Deserialize, Serialize};

use crate::batch;
use crate::failure::hinted;
use crate::units::{Duration, Size};

/// What can be configured; every value may be missing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Values {
    pub(crate) image: Option<PathBuf>,
    pub(crate) backend: Option<String>,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) memory: Option<Size>,
    pub(crate) cpus: Option<u32>,
    pub(crate) containment: Option<Containment>,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) grace: Option<Duration>,
    /// Further directories, as `--bind` takes them.
    pub(crate) bind: Option<Vec<String>>,
    /// Variables of the job's environment.
    pub(crate) env: Option<BTreeMap<String, String>>,
}

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

/// The effective configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) image: Setting<PathBuf>,
    pub(crate) backend: Setting<String>,
    pub(crate) kernel: Setting<Option<PathBuf>>,
    /// `None`: what the host offers, within reason.
    pub(crate) memory: Setting<Option<Size>>,
    pub(crate) cpus: Setting<u32>,
    pub(crate) containment: Setting<Containment>,
    pub(crate) seccomp: Setting<Seccomp>,
    pub(crate) time_limit: Setting<Option<Duration>>,
    pub(crate) grace: Setting<Duration>,
    pub(crate) bind: Setting<Vec<String>>,
    pub(crate) env: Setting<BTreeMap<String, String>>,
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
        layers.extend(files(jobdir)?);
        layers.extend(batch::grant());
        Ok(Self::merge(&layers))
    }

    fn merge(layers: &Layers) -> Self {
        fn pick<T: Clone>(
            layers: &Layers,
            get: impl Fn(&Values) -> &Option<T>,
            built_in: T,
        ) -> Setting<T> {
            let found = layers.iter().find_map(|(origin, values)| {
                get(values).clone().map(|value| Setting {
                    value,
                    origin: origin.clone(),
                })
            });
            found.unwrap_or(Setting {
                value: built_in,
                origin: Origin::BuiltIn,
            })
        }
        fn maybe<T: Clone>(
            layers: &Layers,
            get: impl Fn(&Values) -> &Option<T>,
        ) -> Setting<Option<T>> {
            let found = layers.iter().find(|(_, values)| get(values).is_some());
            match found {
                Some((origin, values)) => Setting {
                    value: get(values).clone(),
                    origin: origin.clone(),
                },
                None => Setting {
                    value: None,
                    origin: Origin::BuiltIn,
                },
            }
        }
        const GRACE: std::time::Duration = std::time::Duration::from_secs(4);
        Config {
            image: pick(layers, |values| &values.image, PathBuf::from("host")),
            backend: pick(layers, |values| &values.backend, String::from("auto")),
            kernel: maybe(layers, |values| &values.kernel),
            memory: maybe(layers, |values| &values.memory),
            cpus: pick(layers, |values| &values.cpus, 1),
            containment: pick(layers, |values| &values.containment, Containment::Auto),
            seccomp: pick(layers, |values| &values.seccomp, Seccomp::Auto),
            time_limit: maybe(layers, |values| &values.time_limit),
            grace: pick(layers, |values| &values.grace, Duration(GRACE)),
            bind: pick(layers, |values| &values.bind, Vec::new()),
            env: pick(layers, |values| &values.env, BTreeMap::new()),
        }
    }

    /// Every key with its value and origin, for people and programs.
    pub(crate) fn rows(&self) -> Vec<Row> {
        fn row<T>(key: &'static str, setting: &Setting<T>, value: impl fmt::Display) -> Row {
            Row {
                key,
                value: value.to_string(),
                origin: setting.origin.to_string(),
            }
        }
        fn or<T: ToString>(value: Option<&T>, otherwise: &str) -> String {
            value.map_or_else(|| otherwise.to_owned(), ToString::to_string)
        }
        let kernel = self
            .kernel
            .value
            .as_ref()
            .map(|path| path.display().to_string());
        let env = self
            .env
            .value
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let env: Vec<String> = env.collect();
        vec![
            row("image", &self.image, self.image.value.display()),
            row("backend", &self.backend, &self.backend.value),
            row("kernel", &self.kernel, or(kernel.as_ref(), "(first found)")),
            row(
                "memory",
                &self.memory,
                or(self.memory.value.as_ref(), "(what fits, 2G at most)"),
            ),
            row("cpus", &self.cpus, self.cpus.value),
            row(
                "containment",
                &self.containment,
                format!("{:?}", self.containment.value).to_lowercase(),
            ),
            row(
                "seccomp",
                &self.seccomp,
                format!("{:?}", self.seccomp.value).to_lowercase(),
            ),
            row(
                "time-limit",
                &self.time_limit,
                or(self.time_limit.value.as_ref(), "(none)"),
            ),
            row("grace", &self.grace, self.grace.value),
            row("bind", &self.bind, self.bind.value.join(" ")),
            row("env", &self.env, env.join(" ")),
        ]
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
    let mut add = |name: &'static str, set: &dyn Fn(&mut Values, &str) -> Result<(), String>| {
        let Some(text) = std::env::var_os(name).filter(|text| !text.is_empty()) else {
            return Ok(());
        };
        let text = text
            .to_str()
            .with_context(|| format!("{name} is not UTF-8"))?;
        let mut values = Values::default();
        set(&mut values, text)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("the environment variable {name} cannot be used"))?;
        layers.push((Origin::Variable(name), values));
        anyhow::Ok(())
    };
    add("APPPOT_IMAGE", &|values, text| {
        put(&mut values.image, Ok(text.into()))
    })?;
    add("APPPOT_BACKEND", &|values, text| {
        put(&mut values.backend, Ok(text.into()))
    })?;
    add("APPPOT_KERNEL", &|values, text| {
        put(&mut values.kernel, Ok(text.into()))
    })?;
    add("APPPOT_MEMORY", &|values, text| {
        put(&mut values.memory, text.parse())
    })?;
    // The name that the first AppPot had.
    add("APPPOT_MEM", &|values, text| {
        put(&mut values.memory, text.parse())
    })?;
    add("APPPOT_CPUS", &|values, text| {
        let cpus = text.parse().ok().filter(|&cpus| cpus > 0);
        put(
            &mut values.cpus,
            cpus.ok_or_else(|| format!("'{text}' is no number of CPUs")),
        )
    })?;
    add("APPPOT_CONTAINMENT", &|values, text| {
        put(&mut values.containment, word(text))
    })?;
    add("APPPOT_SECCOMP", &|values, text| {
        put(&mut values.seccomp, word(text))
    })?;
    add("APPPOT_TIME_LIMIT", &|values, text| {
        put(&mut values.time_limit, text.parse())
    })?;
    add("APPPOT_GRACE", &|values, text| {
        put(&mut values.grace, text.parse())
    })?;
    Ok(layers)
}

fn put<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *slot = Some(value?);
    Ok(())
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| error.to_string())
}

/// The configuration files that there are: the project's, the user's, the site's.
fn files(jobdir: &Path) -> Result<Layers> {
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
        .map(|directory| directory.join("apppot/config.toml"));
    let paths = project_file(jobdir)
        .into_iter()
        .chain(user)
        .chain([PathBuf::from("/etc/apppot/config.toml")]);
    let mut layers = Layers::new();
    for path in paths {
        if let Some(values) = read(&path)? {
            layers.push((Origin::File(path), values));
        }
    }
    Ok(layers)
}

/// `apppot.toml` of the job directory or the nearest directory above it, when it is the user's own
/// or root's: somebody else's file in a shared directory decides nothing.
fn project_file(jobdir: &Path) -> Option<PathBuf> {
    let own = nix::unistd::geteuid().as_raw();
    jobdir
        .ancestors()
        .map(|directory| directory.join("apppot.toml"))
        .find(|path| path.is_file())
        .filter(|path| std::fs::metadata(path).is_ok_and(|file| [own, 0].contains(&file.uid())))
}

fn read(path: &Path) -> Result<Option<Values>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // A home directory that cannot be entered (su, cron) has no configuration for this user.
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot read configuration '{}'", path.display()))
        }
    };
    parse(&text, path).map(Some)
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

fn parse(text: &str, path: &Path) -> Result<Values> {
    let mut values: Values = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        hinted(
            format!("{}:{line}: {}", path.display(), error.message().trim()),
            "the keys are those that 'apppot config' lists",
        )
    })?;
    // A relative path is relative to the file that names it.
    let base = path.parent().unwrap_or(Path::new("/"));
    for file in [&mut values.image, &mut values.kernel]
        .into_iter()
        .flatten()
    {
        if file.as_os_str() != "host" {
            *file = base.join(&file);
        }
    }
    if values.cpus == Some(0) {
        anyhow::bail!("{}: cpus must be at least 1", path.display());
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_layer_wins_and_is_named() {
        let weak = Values {
            memory: Some(Size(1)),
            cpus: Some(2),
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
        assert_eq!(config.cpus.value, 2);
        assert_eq!(config.cpus.origin, Origin::Variable("APPPOT_X"));
        assert_eq!(config.image.origin, Origin::BuiltIn);
    }

    #[test]
    fn files_are_read_with_every_key() {
        let text = "image = 'a.img'\nbackend = 'uml'\nkernel = '/k'\nmemory = '1G'\ncpus = 2\n\
            containment = 'required'\nseccomp = 'off'\ntime-limit = '1h'\ngrace = 3\n\
            bind = ['/data:ro']\n[env]\nA = 'b'\n";
        let values = parse(text, Path::new("/project/apppot.toml")).unwrap();
        assert_eq!(values.image.as_deref(), Some(Path::new("/project/a.img")));
        assert_eq!(values.memory, Some(Size(1 << 30)));
        assert_eq!(values.containment, Some(Containment::Required));
        assert_eq!(values.grace.unwrap().0.as_secs(), 3);
        let rows = Config::merge(&vec![(Origin::Option, values)]).rows();
        assert!(rows.iter().all(|row| row.origin == "option"), "{rows:?}");
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        for (text, line, what) in [
            ("memory = '1G'\nmemroy = '2G'\n", 2, "memroy"),
            ("\n\nmemory = 'much'\n", 3, "much"),
            ("containment = 'maybe'\n", 1, "maybe"),
            ("image = [\n", 2, "array"),
        ] {
            let error = format!("{:#}", parse(text, Path::new("/c.toml")).unwrap_err());
            assert!(error.starts_with(&format!("/c.toml:{line}: ")), "{error}");
            assert!(error.contains(what), "{error}");
        }
    }
}
