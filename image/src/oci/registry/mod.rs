//! Registries (OCI distribution specification 1.1): manifests and blobs over HTTPS, with the tokens that
//! registries want even for what is public.

mod credentials;
mod reference;

use std::cell::RefCell;
use std::io::{self, Read};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

pub use reference::Reference;

use super::{Blobs, Descriptor, Digest, Image, Platform, LONGEST};
use crate::error::shown;
use crate::{Error, Result};

/// Documents that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// How often a blob is asked for again from where it broke off.
const ATTEMPTS: u32 = 5;

/// A repository of images in a registry.
#[derive(Debug)]
pub struct Registry {
    connection: Connection,
    reference: Reference,
}

/// What is needed to ask.
#[derive(Debug, Clone)]
struct Connection {
    agent: Agent,
    /// `https://HOST/v2/NAME`
    base: String,
    registry: String,
    repository: String,
    /// The value of the header `Authorization`.
    authorization: RefCell<Option<String>>,
}

impl Registry {
    /// The registry of `reference`. With `plain_http`, or when it is on this machine, it is spoken to
    /// without encryption.
    #[must_use]
    pub fn new(reference: Reference, plain_http: bool) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("apppot/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        let scheme = match plain_http || reference.is_local() {
            true => "http",
            false => "https",
        };
        Registry {
            connection: Connection {
                agent: config.into(),
                base: format!(
                    "{scheme}://{}/v2/{}",
                    reference.host(),
                    reference.repository
                ),
                registry: reference.registry.clone(),
                repository: reference.repository.clone(),
                authorization: RefCell::new(None),
            },
            reference,
        }
    }

    /// Finds the image.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses, or a document is malformed.
    pub fn find(&self, platform: &Platform) -> Result<Image> {
        let reference = &self.reference;
        let name = reference
            .digest
            .as_ref()
            .map_or(reference.tag.clone(), ToString::to_string);
        let response = self.connection.get(&format!("manifests/{name}"), 0)?;
        let mut document = Vec::new();
        let body = response.into_body().into_reader().take(LONGEST);
        { body }
            .read_to_end(&mut document)
            .map_err(Error::io("read the manifest"))?;
        let digest = reference
            .digest
            .clone()
            .unwrap_or_else(|| Digest::of(&document));
        Image::find(self, &document, &digest, platform)
    }
}

impl Blobs for Registry {
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        // Manifests within an index are found elsewhere than layers.
        let manifest = format!("manifests/{}", blob.digest);
        let blob = format!("blobs/{}", blob.digest);
        let connection = self.connection.clone();
        let (path, response) = match connection.get(&blob, 0) {
            Err(Error::Registry { .. }) => (manifest.clone(), connection.get(&manifest, 0)?),
            other => (blob, other?),
        };
        Ok(Box::new(Download {
            connection,
            path,
            body: Box::new(response.into_body().into_reader()),
            done: 0,
            attempts: ATTEMPTS,
        }))
    }
}

/// A blob that goes on where it broke off.
struct Download {
    connection: Connection,
    path: String,
    body: Box<dyn Read + Send>,
    done: u64,
    attempts: u32,
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let error = match self.body.read(buffer) {
                Ok(len) => {
                    self.done += len as u64;
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.attempts = self.attempts.checked_sub(1).ok_or(error)?;
            let response = self
                .connection
                .get(&self.path, self.done)
                .map_err(io::Error::other)?;
            self.body = Box::new(response.into_body().into_reader());
        }
    }
}

impl Connection {
    /// Asks for a document or blob, from byte `from` on.
    fn get(&self, path: &str, from: u64) -> Result<Response<Body>> {
        let mut response = self.ask(path, from)?;
        if response.status() == 401 {
            self.authorize(&response)?;
            response = self.ask(path, from)?;
        }
        let wanted = if from > 0 { 206 } else { 200 };
        match response.status().as_u16() {
            status if status == wanted => Ok(response),
            401 | 403 => Err(self.refused(
                String::from("access is denied, or there is no such image"),
                Some(format!(
                    "check the name; or log in: skopeo login {}",
                    self.registry
                )),
            )),
            404 => {
                let hint = Some(String::from("check the name and the tag"));
                Err(self.refused(
                    format!("there is no '{}' in {}", path, self.repository),
                    hint,
                ))
            }
            429 => {
                let hint = Some(format!("wait, or log in: skopeo login {}", self.registry));
                Err(self.refused(String::from("too many requests"), hint))
            }
            status => Err(self.refused(format!("HTTP status {status}"), None)),
        }
    }

    fn refused(&self, reason: String, hint: Option<String>) -> Error {
        Error::Registry {
            registry: self.registry.clone(),
            reason,
            hint,
        }
    }

    fn ask(&self, path: &str, from: u64) -> Result<Response<Body>> {
        let mut request = self
            .agent
            .get(format!("{}/{path}", self.base))
            .header("accept", ACCEPT);
        if let Some(authorization) = &*self.authorization.borrow() {
            request = request.header("authorization", authorization);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ureq::Error) -> Error {
        let hint =
            "check the network and the name; --plain-http is for registries without encryption";
        self.refused(error.to_string(), Some(hint.to_owned()))
    }

    /// Does what the registry wants before it answers: a name and password, or a token.
    fn authorize(&self, response: &Response<Body>) -> Result<()> {
        let challenge = response.headers().get("www-authenticate");
        let challenge = challenge
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let basic = credentials::find(&self.registry).map(|found| format!("Basic {found}"));
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let authorization = match scheme.to_ascii_lowercase().as_str() {
            "basic" => basic.ok_or_else(|| {
                let hint = Some(format!("log in: skopeo login {}", self.registry));
                self.refused(String::from("it wants a name and password"), hint)
            })?,
            "bearer" => self.token(parameters, basic)?,
            _ => return Err(self.refused(String::from("it wants an unknown authentication"), None)),
        };
        *self.authorization.borrow_mut() = Some(authorization);
        Ok(())
    }

    /// Gets a token for reading the repository.
    fn token(&self, parameters: &str, basic: Option<String>) -> Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let get = |name: &str| parameter(parameters, name);
        let strange = || self.refused(String::from("it names no place for tokens"), None);
        let realm = get("realm").ok_or_else(strange)?;
        // Credentials do not go over a wire in the clear because a registry says so.
        if realm.starts_with("http://") && self.base.starts_with("https://") {
            return Err(strange());
        }
        let scope = get("scope").unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut request = self.agent.get(&realm).query("scope", scope);
        if let Some(service) = get("service") {
            request = request.query("service", service);
        }
        if let Some(basic) = basic {
            request = request.header("authorization", basic);
        }
        let response = request.call().map_err(|error| self.unreachable(&error))?;
        if response.status() != 200 {
            let reason = format!(
                "it gives no token: HTTP status {}",
                response.status().as_u16()
            );
            let hint = Some(format!(
                "check the name; or log in: skopeo login {}",
                self.registry
            ));
            return Err(self.refused(reason, hint));
        }
        let mut text = Vec::new();
        let body = response.into_body().into_reader().take(1 << 20);
        { body }
            .read_to_end(&mut text)
            .map_err(Error::io("read a token"))?;
        let answer: Answer = serde_json::from_slice(&text).map_err(|_| strange())?;
        let token = answer.token.or(answer.access_token).ok_or_else(strange)?;
        Ok(format!("Bearer {token}"))
    }
}

/// A parameter of a challenge: `name="value"`.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let (value, others) = after.split_once('"')?;
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(shown(value.as_bytes()));
        }
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_have_parameters() {
        let text =
            r#"realm="https://auth.org/token",service="a b", scope="repository:x:pull,push""#;
        assert_eq!(
            parameter(text, "realm").as_deref(),
            Some("https://auth.org/token")
        );
        assert_eq!(parameter(text, "service").as_deref(), Some("a b"));
        assert_eq!(
            parameter(text, "scope").as_deref(),
            Some("repository:x:pull,push")
        );
        assert_eq!(parameter(text, "error"), None);
        assert_eq!(parameter("realm=", "realm"), None);
    }
}
