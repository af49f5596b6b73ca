//! One service of a cloud, over HTTP: signed requests, asked again where that may help.

use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::http::{HeaderMap, Request as HttpRequest, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, SendBody};

use crate::body::{Body, Reading};
use crate::config::{settings, Config};
use crate::error::is_passing;
use crate::sign::{authorization, presigned, timestamp, Scope, Signed, UNSIGNED};
use crate::{Error, Result, Service};

/// The longest answer that is read, bytes.
const LONGEST: u64 = 8 << 20;
/// The longest text of an answer that is shown, characters.
const SHOWN: usize = 600;
/// How often a service is asked that has never answered: it may not be there.
const FIRST_ATTEMPTS: u32 = 3;
/// What a request gets for each MiB of its body, beyond [`TIMEOUT`].
const TIME_PER_MIB: Duration = Duration::from_secs(10);
/// What a request may take.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The pause before the second attempt; each further one is twice as long, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A request that may be made more than once.
pub(crate) struct Request<'a> {
    /// Its name in the service's reference.
    pub(crate) operation: &'a str,
    pub(crate) method: &'static str,
    /// Of characters that need no encoding.
    pub(crate) path: String,
    /// As [`crate::sign::query`] makes it.
    pub(crate) query: String,
    /// With names in lower case.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Body<'a>,
    /// Whether the signature covers the body.
    pub(crate) signs_body: bool,
}

/// What came back, with a status of success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// A service.
#[derive(Debug)]
pub(crate) struct Client {
    service: Service,
    config: Config,
    agent: Agent,
    /// `https://HOST[:PORT]`
    base: String,
    host: String,
    /// What stands before every path.
    prefix: String,
    has_answered: AtomicBool,
}

/// Why an attempt failed.
enum Failure {
    /// Another may succeed.
    Passing(Error),
    /// No other will.
    Lasting(Error),
}

impl Client {
    /// # Errors
    /// The configured endpoint is no URL.
    pub(crate) fn new(service: Service, config: &Config) -> Result<Self> {
        Self::at(&config.endpoint(service), service, config)
    }

    /// At another endpoint than the configured one.
    ///
    /// # Errors
    /// The endpoint is no URL.
    pub(crate) fn at(endpoint: &str, service: Service, config: &Config) -> Result<Self> {
        let (base, host, prefix) = parse(endpoint)?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Credentials go nowhere else.
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_global(Some(TIMEOUT))
            .timeout_per_read(Some(config.silence))
            .timeout_per_write(Some(config.silence))
            .max_idle_connections_per_host(64)
            .max_idle_connections(64)
            .user_agent(concat!("apppot/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Ok(Client {
            service,
            config: config.clone(),
            agent: agent.into(),
            base,
            host,
            prefix,
            has_answered: AtomicBool::new(false),
        })
    }

    /// Asks until there is an answer, or no hope.
    pub(crate) fn call(&self, request: &Request<'_>) -> Result<Answer> {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(request) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error)) => error,
            };
            let most = match self.has_answered.load(Ordering::Relaxed) {
                true => self.config.attempts,
                false => self.config.attempts.min(FIRST_ATTEMPTS),
            };
            if attempt >= most {
                return Err(error);
            }
            std::thread::sleep(pause(attempt));
            attempt += 1;
        }
    }

    fn attempt(&self, request: &Request<'_>) -> std::result::Result<Answer, Failure> {
        let mut body = Reading::of(request.body);
        let response = self.send(request, &mut body).map_err(Failure::Lasting)?;
        let response = match response {
            Ok(response) => response,
            Err(_) if body.is_stopped => return Err(Failure::Lasting(Error::Stopped)),
            Err(error) => return Err(self.lost(&error)),
        };
        self.has_answered.store(true, Ordering::Relaxed);
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader().take(LONGEST);
        reader
            .read_to_end(&mut body)
            .map_err(|error| Failure::Passing(self.unreachable(error.to_string())))?;
        if (200..300).contains(&status) {
            return Ok(Answer { headers, body });
        }
        let (code, message) = refusal(status, &headers, &body);
        let passes = is_passing(status, &code);
        let error = Error::Refused {
            service: self.service.name(),
            operation: request.operation.to_owned(),
            status,
            code: printable(&self.config.credentials.redact(&code)),
            message: printable(&self.config.credentials.redact(&message)),
        };
        Err(match passes {
            true => Failure::Passing(error),
            false => Failure::Lasting(error),
        })
    }

    /// Sends the request with its signature of now.
    fn send(
        &self,
        request: &Request<'_>,
        body: &mut Reading<'_>,
    ) -> Result<std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>> {
        let has_body = matches!(request.method, "POST" | "PUT");
        let mut built = self.build(request)?;
        let len = request.body.len();
        if has_body {
            built = built.header("content-length", len);
        }
        let bad = |error: ureq::http::Error| self.unreachable(error.to_string());
        if !has_body {
            return Ok(self.agent.run(built.body(()).map_err(bad)?));
        }
        let built = built.body(SendBody::from_reader(body)).map_err(bad)?;
        let more = TIME_PER_MIB.saturating_mul(u32::try_from(len >> 20).unwrap_or(u32::MAX));
        let built = self.agent.configure_request(built);
        let built = built.timeout_global(Some(TIMEOUT + more)).build();
        Ok(self.agent.run(built))
    }

    fn build(&self, request: &Request<'_>) -> Result<ureq::http::request::Builder> {
        let time = timestamp(SystemTime::now());
        let path = format!("{}{}", self.prefix, request.path);
        let payload = match request.signs_body {
            true => request.body.digest()?,
            false => UNSIGNED.to_owned(),
        };
        let mut headers = request.headers.clone();
        headers.push(("host", self.host.clone()));
        headers.push(("x-amz-date", time.clone()));
        headers.push(("x-amz-content-sha256", payload.clone()));
        if let Some(token) = &self.config.credentials.token {
            headers.push(("x-amz-security-token", token.clone()));
        }
        let signed = Signed {
            method: request.method,
            path: &path,
            query: &request.query,
            headers: &headers,
            payload: &payload,
        };
        let scope = Scope {
            region: &self.config.region,
            service: self.service.id(),
            time: &time,
        };
        let authorization = authorization(&signed, &scope, &self.config.credentials);
        let mark = if request.query.is_empty() { "" } else { "?" };
        let mut built = HttpRequest::builder()
            .method(request.method)
            .uri(format!("{}{path}{mark}{}", self.base, request.query))
            .header("authorization", authorization);
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            built = built.header(*name, value);
        }
        Ok(built)
    }

    /// A URL that lets whoever has it make one request.
    pub(crate) fn presigned(&self, method: &str, path: &str, expires: Duration) -> String {
        let path = format!("{}{path}", self.prefix);
        let time = timestamp(SystemTime::now());
        let scope = Scope {
            region: &self.config.region,
            service: self.service.id(),
            time: &time,
        };
        let query = presigned(
            method,
            &self.host,
            &path,
            expires,
            &scope,
            &self.config.credentials,
        );
        format!("{}{path}?{query}", self.base)
    }

    fn lost(&self, error: &ureq::Error) -> Failure {
        use ureq::Error::{BadUri, Http, RequireHttpsOnly, Tls, TlsRequired};
        let lasts = matches!(
            error,
            BadUri(_) | Http(_) | RequireHttpsOnly(_) | Tls(_) | TlsRequired
        );
        let error = self.unreachable(error.to_string());
        match lasts {
            true => Failure::Lasting(error),
            false => Failure::Passing(error),
        }
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable {
            service: self.service.name(),
            host: self.host.clone(),
            reason,
        }
    }

    /// An answer that makes no sense.
    pub(crate) fn malformed(&self, operation: &str, reason: impl Into<String>) -> Error {
        Error::Malformed {
            service: self.service.name(),
            operation: operation.to_owned(),
            reason: printable(&reason.into()),
        }
    }
}

/// A random number. The seeds of the standard library's hash tables are random.
#[must_use]
pub fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Between half and the whole of what doubling gives: clients that fail together do not return together.
fn pause(attempt: u32) -> Duration {
    let whole = PAUSE.saturating_mul(1 << attempt.min(16).saturating_sub(1));
    let half = whole.min(LONGEST_PAUSE) / 2;
    half + half.mul_f64(random() as f64 / u64::MAX as f64)
}

/// Origin, host and prefix of an endpoint.
fn parse(url: &str) -> Result<(String, String, String)> {
    let wrong = || {
        let hint = "write https://HOST[:PORT][/PATH], without a name and password";
        settings("the endpoint of the configuration is no URL", hint)
    };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (scheme, authority) = match (uri.scheme_str(), uri.authority()) {
        (Some(scheme @ ("http" | "https")), Some(authority)) => (scheme, authority.as_str()),
        _ => return Err(wrong()),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    if authority.contains('@') || uri.query().is_some() || !uri.path().chars().all(plain) {
        return Err(wrong());
    }
    // Signed is the host as it is sent.
    let usual = if scheme == "http" { ":80" } else { ":443" };
    let host = authority.strip_suffix(usual).unwrap_or(authority);
    let prefix = uri.path().trim_end_matches('/');
    Ok((
        format!("{scheme}://{host}"),
        host.to_owned(),
        prefix.to_owned(),
    ))
}

/// Code and text of a refusal: XML of EC2's kind, JSON of EBS's, or neither.
fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(body);
    if let Ok(document) = roxmltree::Document::parse(&text) {
        let find = |name: &str| {
            let mut all = document.descendants();
            all.find(|node| node.has_tag_name(name))?.text()
        };
        if let Some(code) = find("Code") {
            return (
                code.to_owned(),
                find("Message").unwrap_or_default().to_owned(),
            );
        }
    }
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let field = |name: &str| json.get(name).and_then(Value::as_str);
    let header = headers.get("x-amzn-errortype");
    let kind = header.and_then(|value| value.to_str().ok());
    let kind = kind.or_else(|| field("__type")).or_else(|| field("code"));
    let message = field("message").or_else(|| field("Message"));
    match (kind, message) {
        (None, None) => (format!("HTTP {status}"), text.into_owned()),
        (kind, message) => {
            // `namespace#Code:url`
            let kind = kind.map(|kind| kind.split(':').next().unwrap_or(kind));
            let kind = kind.map(|kind| kind.rsplit('#').next().unwrap_or(kind).to_owned());
            let code = kind.unwrap_or_else(|| format!("HTTP {status}"));
            (code, message.unwrap_or_default().to_owned())
        }
    }
}

fn printable(text: &str) -> String {
    let mut shown: String = text
        .trim()
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls() {
        let parts = |url: &str| parse(url).unwrap();
        let (base, host, prefix) = parts("http://127.0.0.1:5000/");
        assert_eq!(base, "http://127.0.0.1:5000");
        assert_eq!((&host[..], &prefix[..]), ("127.0.0.1:5000", ""));
        let (base, host, prefix) = parts("https://cloud.org:443/services/Cloud/");
        assert_eq!((&base[..], &host[..]), ("https://cloud.org", "cloud.org"));
        assert_eq!(prefix, "/services/Cloud");
        for url in [
            "",
            "ec2.org",
            "ftp://x",
            "http://u:hidden@x",
            "http://x/?a",
            "http://x/ö",
        ] {
            let error = parse(url).unwrap_err();
            assert!(!error.to_string().contains("hidden"), "{url}");
        }
    }

    #[test]
    fn refusals_of_every_kind_are_read() {
        let none = HeaderMap::new();
        let xml = b"<?xml version=\"1.0\"?><Response><Errors><Error><Code>AuthFailure</Code>\
                    <Message>no</Message></Error></Errors><RequestID>1</RequestID></Response>";
        let pair = |code: &str, text: &str| (code.to_owned(), text.to_owned());
        assert_eq!(refusal(401, &none, xml), pair("AuthFailure", "no"));
        let json = br#"{"__type":"com.amazon#ValidationException","Message":"bad"}"#;
        assert_eq!(
            refusal(400, &none, json),
            pair("ValidationException", "bad")
        );
        let mut typed = HeaderMap::new();
        let value = "AccessDeniedException:http://internal/";
        typed.insert("x-amzn-errortype", value.parse().unwrap());
        let json = br#"{"message":"you may not"}"#;
        assert_eq!(
            refusal(403, &typed, json),
            pair("AccessDeniedException", "you may not")
        );
        assert_eq!(refusal(502, &none, b"Bad"), pair("HTTP 502", "Bad"));
        // Entities that grow are not expanded.
        let bomb = b"<!DOCTYPE x [<!ENTITY a \"aa\">]><x><Code>&a;</Code></x>";
        assert_eq!(refusal(400, &none, bomb).0, "HTTP 400");
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        for attempt in 1..40 {
            let pause = pause(attempt);
            assert!(pause >= PAUSE / 2 && pause <= LONGEST_PAUSE, "{pause:?}");
        }
        assert!(pause(8) > pause(1));
    }
}
