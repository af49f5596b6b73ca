//! Who we are to a registry: what `docker login` and `podman login` have left.

use std::path::PathBuf;

use base64::prelude::{Engine, BASE64_STANDARD};
use serde_json::Value;

/// Files that may hold credentials, in the order in which podman and skopeo read them.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let below = |name: &str, path: &str| variable(name).map(|base| base.join(path));
    [
        variable("REGISTRY_AUTH_FILE"),
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        below("XDG_CONFIG_HOME", "containers/auth.json"),
        below("HOME", ".config/containers/auth.json"),
        below("DOCKER_CONFIG", "config.json"),
        below("HOME", ".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The credentials for a registry, as HTTP's Basic authentication takes them: base64 of name and
/// password.
pub(super) fn find(registry: &str) -> Option<String> {
    let read = |path: PathBuf| {
        let text = std::fs::read(path).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        among(&value, registry)
    };
    files().into_iter().find_map(read)
}

fn among(file: &Value, registry: &str) -> Option<String> {
    let auths = file.get("auths")?;
    let names = match registry {
        "docker.io" => vec!["docker.io", "https://index.docker.io/v1/"],
        other => vec![other],
    };
    let auth = names
        .into_iter()
        .find_map(|name| auths.get(name)?.get("auth")?.as_str())?;
    // It goes into a header: nothing but base64 of something with a colon.
    let decoded = BASE64_STANDARD.decode(auth).ok()?;
    decoded.contains(&b':').then(|| auth.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_registry() {
        let file = r#"{"auths":{"a.org":{"auth":"dTpw"},"https://index.docker.io/v1/":{"auth":"ZDpw"},
            "odd":{"auth":"no base64\r\n"}}}"#;
        let file: Value = serde_json::from_str(file).unwrap();
        assert_eq!(among(&file, "a.org").as_deref(), Some("dTpw"));
        assert_eq!(among(&file, "docker.io").as_deref(), Some("ZDpw"));
        assert_eq!(among(&file, "odd"), None);
        assert_eq!(among(&file, "b.org"), None);
    }
}
