//! Signature version 4 of the AWS General Reference, in headers.
//!
//! By ourselves: the library for it needs a newer compiler than ours in the versions that are
//! maintained, and brings an asynchronous runtime in the others (ADR 13).

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::Credentials;

/// What stands for the digest of a body that is not signed.
pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// A request as it is signed.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    /// As it is sent: percent-encoded, or of characters that need no encoding.
    pub(crate) path: &'a str,
    /// Every header that is signed, with names in lower case; `host` and `x-amz-date` among them.
    pub(crate) headers: &'a [(&'a str, String)],
    /// SHA-256 of the body in hexadecimal, or [`UNSIGNED`].
    pub(crate) payload: &'a str,
}

/// For what a signature is good.
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    /// As [`timestamp`] makes it.
    pub(crate) time: &'a str,
}

/// The value of the header `Authorization`.
pub(crate) fn authorization(
    request: &Signed<'_>,
    scope: &Scope<'_>,
    credentials: &Credentials,
) -> String {
    let mut headers: Vec<_> = request.headers.iter().collect();
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().fold(String::new(), |mut text, header| {
        let _ = writeln!(text, "{}:{}", header.0, header.1.trim());
        text
    });
    let (method, path, payload) = (request.method, request.path, request.payload);
    let canonical = format!("{method}\n{path}\n\n{lines}\n{names}\n{payload}");
    let date = &scope.time[..8];
    let place = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let digest = hex(&Sha256::digest(canonical));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{place}\n{digest}", scope.time);
    let first = format!("AWS4{}", credentials.secret);
    let words = [date, scope.region, scope.service, "aws4_request", &text];
    let signature = words
        .iter()
        .fold(first.into_bytes(), |key, word| keyed(&key, word.as_bytes()));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{place}, SignedHeaders={names}, Signature={}",
        credentials.id,
        hex(&signature)
    )
}

fn keyed(key: &[u8], text: &[u8]) -> Vec<u8> {
    // HMAC takes keys of every length.
    #[allow(clippy::unwrap_used)]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The time as `20261123T041500Z`.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days since 1 March of the year 0, in eras of 400 years (Hinnant, chrono-compatible algorithms).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The test suite of Signature Version 4, as Amazon publishes it.
    #[test]
    fn signatures_are_those_of_the_test_suite() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIDEXAMPLE", secret, None).unwrap();
        let scope = Scope {
            region: "us-east-1",
            service: "service",
            time: "20150830T123600Z",
        };
        let common = [
            ("x-amz-date", String::from("20150830T123600Z")),
            ("host", String::from("example.amazonaws.com")),
        ];
        let form = [(
            "content-type",
            String::from("application/x-www-form-urlencoded"),
        )];
        let form = [&form[..], &common].concat();
        for (method, headers, body, signature) in [
            (
                "GET",
                &common[..],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "POST",
                &common[..],
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "POST",
                &form[..],
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ] {
            let request = Signed {
                method,
                path: "/",
                headers,
                payload: &hex(&Sha256::digest(body)),
            };
            let header = authorization(&request, &scope, &credentials);
            let (_, found) = header.split_once("Signature=").unwrap();
            assert_eq!(found, signature, "{method} {body}");
            assert!(!header.contains(secret));
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), text);
        }
    }
}
