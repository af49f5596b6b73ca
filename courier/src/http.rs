//! An object store over HTTP, by presigned URLs. Nobody is told of a URL's query.

use std::ffi::{c_char, c_int};
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use apppot_contract::Url;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use crate::store::{Object, Store, Trouble};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(15);
/// How long neither side may say anything.
const SILENCE: Duration = Duration::from_secs(30);
/// Bodies from this length on wait for the store's consent: a refusal is heard before they are sent.
const LARGE: u64 = 512 << 10;
/// The longest refusal that is read, bytes, and the most of it that is shown, characters.
const REFUSAL: u64 = 16 << 10;
const SHOWN: usize = 200;

/// Where systems have the certificates that they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client.
pub(crate) struct Http {
    agent: Agent,
}

impl Http {
    pub(crate) fn new() -> Self {
        // An image without certificates has those that browsers trust.
        let root_certs = match BUNDLES.iter().any(|path| Path::new(path).exists()) {
            true => RootCerts::PlatformVerifier,
            false => RootCerts::WebPki,
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A URL is signed for its host.
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .user_agent(concat!("apppot/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(root_certs).build())
            .build();
        Http {
            agent: agent.into(),
        }
    }

    /// Whole answers of at most `most` bytes of EC2's metadata service: status and body.
    pub(crate) fn metadata(
        &self,
        service: SocketAddr,
        method: &str,
        path: &str,
        header: (&str, &str),
        most: u64,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let url = format!("http://{service}{path}");
        let brief = Some(Duration::from_secs(5));
        let (name, value) = header;
        let answer = match method {
            "PUT" => {
                let request = self.agent.put(url).header(name, value);
                request.config().timeout_global(brief).build().send_empty()
            }
            _ => {
                let request = self.agent.get(url).header(name, value);
                request.config().timeout_global(brief).build().call()
            }
        };
        let answer = answer.map_err(|error| error.to_string())?;
        let status = answer.status();
        let mut body = Vec::new();
        let read = answer
            .into_body()
            .into_reader()
            .take(most)
            .read_to_end(&mut body);
        read.map_err(|error| error.to_string())?;
        Ok((status, body))
    }
}

/// What is left, and never nothing: that would be no limit at all.
fn left(until: Instant) -> Option<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    Some(left.max(Duration::from_secs(1)))
}

impl Store for Http {
    fn get(&self, url: &Url, from: u64, until: Instant) -> Result<Object, Trouble> {
        let mut request = self.agent.get(url.secret());
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.config().timeout_global(left(until)).build();
        let answer = request.call().map_err(|error| lost(&error, url))?;
        let skipped = match answer.status().as_u16() {
            206 if from > 0 => 0,
            // It does not know of ranges.
            200 => from,
            _ => return Err(refused(answer, url)),
        };
        // The client knows no length of an object without bytes.
        let length = answer.headers().get("content-length");
        let length = length.and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
        let length = length.and_then(|length| length.checked_sub(skipped));
        let length = length.ok_or_else(|| {
            Trouble::Lasting(format!(
                "{url}: the store does not say how long the object is"
            ))
        })?;
        let mut body = answer.into_body().into_reader();
        let gone = std::io::copy(&mut (&mut body).take(skipped), &mut std::io::sink());
        match gone {
            Ok(gone) if gone == skipped => {}
            Ok(_) => return Err(Trouble::Passing(format!("{url}: the answer was cut off"))),
            Err(error) => return Err(Trouble::Passing(format!("{url}: {error}"))),
        }
        Ok(Object {
            body: Box::new(body),
            length,
        })
    }

    fn put(
        &self,
        url: &Url,
        body: &mut dyn Read,
        length: u64,
        until: Instant,
    ) -> Result<(), Trouble> {
        let mut request = self.agent.put(url.secret());
        request = request.header("content-length", length.to_string());
        if length >= LARGE {
            request = request.header("expect", "100-continue");
        }
        let request = request.config().timeout_global(left(until)).build();
        let mut body = body.take(length);
        let answer = request.send(SendBody::from_reader(&mut body));
        let answer = answer.map_err(|error| lost(&error, url))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(refused(answer, url)),
        }
    }
}

/// A request without an answer.
fn lost(error: &ureq::Error, url: &Url) -> Trouble {
    use ureq::Error::{BadUri, Http, RequireHttpsOnly, Rustls, Tls, TlsRequired};
    let lasts = matches!(
        error,
        BadUri(_) | Http(_) | RequireHttpsOnly(_) | Rustls(_) | Tls(_) | TlsRequired
    );
    let text = format!("{url}: {}", without_query(&error.to_string(), url));
    match lasts {
        true => Trouble::Lasting(text),
        false => Trouble::Passing(text),
    }
}

/// A request that was answered by a refusal.
fn refused(answer: Response<Body>, url: &Url) -> Trouble {
    let status = answer.status();
    let mut body = Vec::new();
    let mut reader = answer.into_body().into_reader().take(REFUSAL);
    // What came before the connection broke may be all.
    let _ = reader.read_to_end(&mut body);
    let body = String::from_utf8_lossy(&body);
    let field = |name: &str| element(&body, name).unwrap_or_default();
    let (code, message) = (field("Code"), field("Message"));
    let expired = status == StatusCode::FORBIDDEN
        && (message.to_lowercase().contains("expired") || code.contains("Expired"));
    let mut text = format!("{url}: the store refuses: HTTP {}", status.as_u16());
    if expired {
        text = format!("{url}: the URL has expired: HTTP {}", status.as_u16());
    }
    for part in [code, message].iter().filter(|part| !part.is_empty()) {
        let part = without_query(part, url);
        let part: String = part
            .chars()
            .filter(|c| !c.is_control())
            .take(SHOWN)
            .collect();
        text.push_str(": ");
        text.push_str(&part);
    }
    let passes = match status.as_u16() {
        // S3's for a connection that stood still.
        400 => code == "RequestTimeout",
        code => code >= 500 || matches!(code, 408 | 429),
    };
    match passes {
        true => Trouble::Passing(text),
        false => Trouble::Lasting(text),
    }
}

/// The text of the first element of that name, in XML of the kind that stores answer with.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split('<').next()
}

/// `text` without the URL's query and its values, should somebody have repeated them.
fn without_query(text: &str, url: &Url) -> String {
    let Some((_, query)) = url.secret().split_once('?') else {
        return text.to_owned();
    };
    let mut text = text.replace(query, "…");
    let values = query.split('&').filter_map(|pair| pair.split_once('='));
    // Shorter ones are numbers and dates.
    for (_, value) in values.filter(|(_, value)| value.len() >= 16) {
        text = text.replace(value, "…");
    }
    text
}

/// Names are looked up in files and by DNS, whatever `/etc/nsswitch.conf` says: its other modules are
/// libraries of the image's, for another C library than the one that is linked into this program.
pub(crate) fn resolve_names_alone() {
    extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    // SAFETY: two strings that end with NUL (nss.h of the GNU C library); there are no other threads yet.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_and_hide_what_is_secret() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        assert_eq!(element(xml, "Code"), Some("AccessDenied"));
        assert_eq!(element(xml, "Message"), Some("Request has expired"));
        assert_eq!(element("no", "Code"), None);
        let url = Url::new("http://h/o?X-Amz-Date=2026&X-Amz-Signature=0123456789abcdef").unwrap();
        let text = "of 2026 0123456789abcdef X-Amz-Date=2026&X-Amz-Signature=0123456789abcdef";
        assert_eq!(without_query(text, &url), "of 2026 … …");
    }

    #[test]
    fn names_are_still_found() {
        use std::net::ToSocketAddrs;
        resolve_names_alone();
        assert!(("localhost", 80)
            .to_socket_addrs()
            .is_ok_and(|mut found| found.next().is_some()));
    }
}
