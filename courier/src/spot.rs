//! EC2's notice that it takes a spot machine back in two minutes.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::http::Http;
use crate::shared::{say, Shared};

/// How often the service is asked; Amazon recommends this.
const PERIOD: Duration = Duration::from_secs(5);
/// The longest answer that is read, bytes.
const LONGEST: u64 = 4 << 10;
/// How long a token is good for, seconds.
const LIFETIME: (&str, &str) = ("x-aws-ec2-metadata-token-ttl-seconds", "21600");

/// Asks until there is a notice; then the job is asked to end, so that its results are saved in time.
pub(crate) fn watch(http: &Http, services: &[SocketAddr], shared: &Shared) {
    let mut token = None;
    loop {
        for service in services {
            if let Some(notice) = ask(http, *service, &mut token) {
                shared.note(&format!("the cloud takes the machine back: {notice}"));
                shared.end_job();
                return;
            }
        }
        std::thread::sleep(PERIOD);
    }
}

/// The notice, in words. What fails is asked again later.
fn ask(
    http: &Http,
    service: SocketAddr,
    token: &mut Option<(SocketAddr, String)>,
) -> Option<String> {
    if token.as_ref().is_none_or(|(owner, _)| *owner != service) {
        let (status, text) = http
            .metadata(service, "PUT", "/latest/api/token", LIFETIME, LONGEST)
            .ok()?;
        let text = String::from_utf8(text)
            .ok()
            .filter(|_| status.is_success())?;
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        *token = Some((service, text));
    }
    let (_, text) = token.as_ref()?;
    let header = ("x-aws-ec2-metadata-token", text.as_str());
    let path = "/latest/meta-data/spot/instance-action";
    let (status, body) = http.metadata(service, "GET", path, header, LONGEST).ok()?;
    match status.as_u16() {
        200 => {}
        // The token has expired.
        401 => {
            *token = None;
            return None;
        }
        _ => return None,
    }
    let notice = words(&body);
    if notice.is_none() {
        say("the notice of the metadata service cannot be understood");
    }
    notice
}

/// `{"action": "terminate", "time": "2026-11-23T08:22:00Z"}`
fn words(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let field = |name: &str| {
        let text = value.get(name)?.as_str()?;
        Some(
            text.chars()
                .filter(|c| !c.is_control())
                .take(40)
                .collect::<String>(),
        )
    };
    Some(format!(
        "{} at {}",
        field("action")?,
        field("time").unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_says_what_and_when() {
        let notice = br#"{"action": "terminate", "time": "2026-11-23T08:22:00Z"}"#;
        assert_eq!(
            words(notice).as_deref(),
            Some("terminate at 2026-11-23T08:22:00Z")
        );
        for none in ["", "<html>", "{}", r#"{"action": 1}"#] {
            assert_eq!(words(none.as_bytes()), None, "{none}");
        }
    }
}
