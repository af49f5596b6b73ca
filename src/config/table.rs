//! Every key of the configuration: the one place where they are listed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use apppot_backends::spec::{Containment, Network, Seccomp};
use serde::Deserialize;

use super::{Layers, Origin, Row, Setting};
use crate::signature::Key;
use crate::units::{Cpus, Duration, Size};

/// A value that one word can say, as in a variable of the environment.
pub(crate) trait Word: Sized {
    /// # Errors
    /// The text is no such value; what one looks like.
    fn read(text: &str) -> Result<Self, String>;
}

/// A value as `apppot config` shows it.
trait Show {
    fn show(&self) -> String;
}

/// Makes the layers' values, the effective configuration, its merging, its rows and its variables of
/// one list. Where there is no built-in value, the list says in words what happens then.
macro_rules! keys {
    ($(
        $(#[$doc:meta])*
        $key:ident $name:literal: $value:ty => $held:ty = $built_in:expr, $otherwise:literal, [$($variable:literal),*];
    )*) => {
        /// What can be configured; every value may be missing.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct Values {
            $($(#[$doc])* #[serde(rename = $name)] pub(crate) $key: Option<$value>,)*
        }

        /// The effective configuration.
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct Config {
            $($(#[$doc])* pub(crate) $key: Setting<$held>,)*
        }

        impl Config {
            /// Of each value the strongest layer's.
            pub(super) fn strongest(layers: &Layers) -> Self {
                Config {
                    $($key: {
                        let found = layers.iter().find_map(|(origin, values)| {
                            Some((values.$key.clone()?.into(), origin.clone()))
                        });
                        let (value, origin) = found.unwrap_or(($built_in, Origin::BuiltIn));
                        Setting { value, origin }
                    },)*
                }
            }

            /// Every key with its value and origin, for people and programs.
            pub(crate) fn rows(&self) -> Vec<Row> {
                vec![$(Row {
                    key: $name,
                    value: match &self.$key {
                        Setting { origin: Origin::BuiltIn, .. } if !$otherwise.is_empty() => String::from($otherwise),
                        setting => setting.value.show(),
                    },
                    origin: self.$key.origin.to_string(),
                },)*]
            }
        }

        /// The variables of the environment, each with what makes it a layer of values.
        pub(super) const VARIABLES: &[(&str, Read)] = &[
            $($(($variable, |text| Ok(Values { $key: Some(<$value as Word>::read(text)?), ..Values::default() })),)*)*
        ];
    };
}

/// Reads a variable's text.
pub(super) type Read = fn(&str) -> Result<Values, String>;

/// Time between asking a job to end and ending it, when nobody says how much.
const GRACE: Duration = Duration(std::time::Duration::from_secs(4));

keys! {
    image "image": PathBuf => PathBuf = PathBuf::from("host"), "", ["APPPOT_IMAGE"];
    backend "backend": String => String = String::from("auto"), "", ["APPPOT_BACKEND"];
    /// `None`: see `apppot_backends::libvirt::connection::uri`.
    connect "connect": String => Option<String> = None, "(LIBVIRT_DEFAULT_URI, else qemu:///session)", ["APPPOT_CONNECT"];
    kernel "kernel": PathBuf => Option<PathBuf> = None, "(the first one found)", ["APPPOT_KERNEL"];
    /// `None`: what the host offers, within reason. `APPPOT_MEM` is the name that the first AppPot had.
    memory "memory": Size => Option<Size> = None, "(what fits, 2G at most)", ["APPPOT_MEMORY", "APPPOT_MEM"];
    cpus "cpus": Cpus => Cpus = Cpus(1), "", ["APPPOT_CPUS"];
    containment "containment": Containment => Containment = Containment::Auto, "", ["APPPOT_CONTAINMENT"];
    seccomp "seccomp": Seccomp => Seccomp = Seccomp::Auto, "", ["APPPOT_SECCOMP"];
    network "network": Network => Network = Network::None, "", ["APPPOT_NETWORK"];
    time_limit "time-limit": Duration => Option<Duration> = None, "(none)", ["APPPOT_TIME_LIMIT"];
    grace "grace": Duration => Duration = GRACE, "", ["APPPOT_GRACE"];
    channel "channel": String => String = String::from("auto"), "", ["APPPOT_CHANNEL"];
    /// EC2: the bucket that jobs and their launchers meet in.
    ec2_bucket "ec2-bucket": String => Option<String> = None, "(none)", ["APPPOT_EC2_BUCKET"];
    ec2_type "ec2-type": String => Option<String> = None, "(by memory and cpus)", ["APPPOT_EC2_TYPE"];
    ec2_subnet "ec2-subnet": String => Option<String> = None, "(the account's default)", ["APPPOT_EC2_SUBNET"];
    ec2_groups "ec2-groups": Vec<String> => Vec<String> = Vec::new(), "(the network's default)", [];
    ec2_key "ec2-key": String => Option<String> = None, "(none)", ["APPPOT_EC2_KEY"];
    ec2_disk "ec2-disk": Size => Option<Size> = None, "(the image's)", ["APPPOT_EC2_DISK"];
    ec2_spot "ec2-spot": bool => bool = false, "", ["APPPOT_EC2_SPOT"];
    /// Further directories, as `--bind` takes them.
    bind "bind": Vec<String> => Vec<String> = Vec::new(), "", [];
    /// Variables of the job's environment.
    env "env": BTreeMap<String, String> => BTreeMap<String, String> = BTreeMap::new(), "", [];
    /// Whether images and changes archives must be signed: see `demand`.
    require_signature "require-signature": bool => bool = false, "", [];
    /// Public keys whose signatures count.
    trusted_keys "trusted-keys": Vec<Key> => Vec<Key> = Vec::new(), "", [];
}

/// Types that are read by their own `FromStr`, and shown as they display themselves.
macro_rules! words {
    ($($type:ty),*) => { $(
        impl Word for $type {
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| format!("{error}"))
            }
        }

        impl Show for $type {
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )* };
}

words!(String, Size, Cpus, Duration, Network, bool);

/// Enums of words, which configuration files have as well.
macro_rules! choices {
    ($($type:ty, $words:literal;)*) => { $(
        impl Word for $type {
            fn read(text: &str) -> Result<Self, String> {
                use serde::de::value::{Error, StrDeserializer};
                use serde::de::IntoDeserializer;
                let deserializer: StrDeserializer<Error> = text.into_deserializer();
                Self::deserialize(deserializer).map_err(|_| format!("'{text}' is not one of {}", $words))
            }
        }

        impl Show for $type {
            fn show(&self) -> String {
                format!("{self:?}").to_lowercase()
            }
        }
    )* };
}

choices! {
    Containment, "required, auto or off";
    Seccomp, "auto or off";
}

impl Word for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        Ok(PathBuf::from(text))
    }
}

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, Show::show)
    }
}

impl Show for Vec<String> {
    fn show(&self) -> String {
        self.join(" ")
    }
}

impl Show for Vec<Key> {
    fn show(&self) -> String {
        let keys: Vec<String> = self.iter().map(Key::to_string).collect();
        keys.join(" ")
    }
}

impl Show for BTreeMap<String, String> {
    fn show(&self) -> String {
        let variables: Vec<String> = self
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        variables.join(" ")
    }
}
