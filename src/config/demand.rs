//! Demands for signatures: the one part of the configuration in which the weakest layer wins. A user
//! cannot take back what the site demands, nor add keys to it, but can demand more than the site.

use super::{Layers, Origin, Setting};
use crate::signature::Key;

/// Whether signatures are required: of the layers that say so the last. And the keys that count: that
/// layer's, and those of the layers behind it; all where nobody requires any.
pub(super) fn merge(layers: &Layers) -> (Setting<bool>, Setting<Vec<Key>>) {
    let demanding = layers
        .iter()
        .rposition(|(_, values)| values.require_signature == Some(true));
    let said = demanding.or_else(|| {
        let says = |values: &super::Values| values.require_signature.is_some();
        layers.iter().position(|(_, values)| says(values))
    });
    let origin = |at: Option<usize>| at.map_or(Origin::BuiltIn, |at| layers[at].0.clone());
    let required = Setting {
        value: demanding.is_some(),
        origin: origin(said),
    };
    let trusting: Vec<usize> = (demanding.unwrap_or(0)..layers.len())
        .filter(|&at| layers[at].1.trusted_keys.is_some())
        .collect();
    let keys = trusting
        .iter()
        .flat_map(|&at| layers[at].1.trusted_keys.iter().flatten().cloned());
    let trusted = Setting {
        value: keys.collect(),
        origin: origin(trusting.first().copied()),
    };
    (required, trusted)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Config, Values, SITE};
    use super::*;

    const KEYS: [&str; 3] = [
        "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3",
        "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO4",
        "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO5",
    ];

    fn file(path: &str) -> Origin {
        Origin::File(PathBuf::from(path))
    }

    fn keys(config: &Config) -> Vec<String> {
        config
            .trusted_keys
            .value
            .iter()
            .map(Key::to_string)
            .collect()
    }

    fn signing(path: &str, required: Option<bool>, key: usize) -> (Origin, Values) {
        let key = Key::try_from(KEYS[key].to_owned()).unwrap();
        let values = Values {
            require_signature: required,
            trusted_keys: Some(vec![key]),
            ..Values::default()
        };
        (file(path), values)
    }

    #[test]
    fn a_site_s_demand_cannot_be_weakened() {
        for stronger in [None, Some(false), Some(true)] {
            let config = Config::merge(&vec![
                signing("/job/apppot.toml", stronger, 0),
                signing("/home/config.toml", stronger, 1),
                signing(SITE, Some(true), 2),
            ]);
            assert!(config.require_signature.value);
            assert_eq!(config.require_signature.origin, file(SITE));
            assert_eq!(keys(&config), KEYS[2..]);
        }
    }

    #[test]
    fn a_user_may_demand_what_the_site_does_not() {
        let config = Config::merge(&vec![
            signing("/job/apppot.toml", Some(false), 0),
            signing("/home/config.toml", Some(true), 1),
            signing(SITE, None, 2),
        ]);
        assert_eq!(config.require_signature.origin, file("/home/config.toml"));
        assert_eq!(keys(&config), KEYS[1..]);
        let nobody = Config::merge(&vec![signing(SITE, Some(false), 2)]);
        assert!(!nobody.require_signature.value);
        assert_eq!(nobody.trusted_keys.value.len(), 1);
    }
}
