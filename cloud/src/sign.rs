//! Signature version 4 of the AWS General Reference, in headers and in URLs.
//!
//! By ourselves: the library for it needs a newer compiler than ours in the versions that are
//! maintained, and brings an asynchronous runtime in the others (ADR 13).

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::Credentials;

/// What stands for the digest of a body that is not signed.
pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A request as it is signed.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    /// As it is sent: percent-encoded, or of characters that need no encoding.
    pub(crate) path: &'a str,
    /// As it is sent: see [`query`].
    pub(crate) query: &'a str,
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

impl Scope<'_> {
    fn place(&self) -> String {
        let date = &self.time[..8];
        format!("{date}/{}/{}/aws4_request", self.region, self.service)
    }
}

/// The value of the header `Authorization`.
pub(crate) fn authorization(
    request: &Signed<'_>,
    scope: &Scope<'_>,
    credentials: &Credentials,
) -> String {
    format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={}",
        credentials.id,
        scope.place(),
        names(request.headers),
        signature(request, scope, credentials)
    )
}

/// The query of a URL that lets whoever has it make one request to `host`, for a time of up to a week.
pub(crate) fn presigned(
    method: &str,
    host: &str,
    path: &str,
    expires: Duration,
    scope: &Scope<'_>,
    credentials: &Credentials,
) -> String {
    let owner = format!("{}/{}", credentials.id, scope.place());
    let seconds = expires.as_secs().to_string();
    let mut pairs = vec![
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", &owner),
        ("X-Amz-Date", scope.time),
        ("X-Amz-Expires", &seconds),
        ("X-Amz-SignedHeaders", "host"),
    ];
    if let Some(token) = &credentials.token {
        pairs.push(("X-Amz-Security-Token", token));
    }
    let query = query(&pairs);
    let signed = Signed {
        method,
        path,
        query: &query,
        headers: &[("host", host.to_owned())],
        payload: UNSIGNED,
    };
    let signature = signature(&signed, scope, credentials);
    format!("{query}&X-Amz-Signature={signature}")
}

/// The query of a URL as it is sent and signed: encoded, in order.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let encoded = |(name, value): &(&str, &str)| (encode(name), encode(value));
    let mut pairs: Vec<_> = pairs.iter().map(encoded).collect();
    pairs.sort();
    let pairs = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join("&")
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            other => {
                let _ = write!(encoded, "%{other:02X}");
            }
        }
    }
    encoded
}

/// Names of headers, as they are signed.
fn names(headers: &[(&str, String)]) -> String {
    let mut names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.join(";")
}

fn signature(request: &Signed<'_>, scope: &Scope<'_>, credentials: &Credentials) -> String {
    let mut headers: Vec<_> = request.headers.iter().collect();
    headers.sort();
    let lines: String = headers.iter().fold(String::new(), |mut text, header| {
        let _ = writeln!(text, "{}:{}", header.0, header.1.trim());
        text
    });
    let (method, path, query) = (request.method, request.path, request.query);
    let (names, payload) = (names(request.headers), request.payload);
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}");
    let digest = hex(&Sha256::digest(canonical));
    let text = format!("{ALGORITHM}\n{}\n{}\n{digest}", scope.time, scope.place());
    let first = format!("AWS4{}", credentials.secret);
    let words = [
        &scope.time[..8],
        scope.region,
        scope.service,
        "aws4_request",
        &text,
    ];
    let signature = words
        .iter()
        .fold(first.into_bytes(), |key, word| keyed(&key, word.as_bytes()));
    hex(&signature)
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

/// The time as `2026-11-23T04:15:00Z`: two of them compare as their texts do.
#[must_use]
pub fn iso_time(time: SystemTime) -> String {
    let text = timestamp(time);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(9, 11),
        part(11, 13),
        part(13, 15)
    )
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
                query: "",
                headers,
                payload: &hex(&Sha256::digest(body)),
            };
            let header = authorization(&request, &scope, &credentials);
            let (_, found) = header.split_once("Signature=").unwrap();
            assert_eq!(found, signature, "{method} {body}");
            assert!(!header.contains(secret));
        }
    }

    const S3_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const S3: Scope<'_> = Scope {
        region: "us-east-1",
        service: "s3",
        time: "20130524T000000Z",
    };
    const S3_HOST: &str = "examplebucket.s3.amazonaws.com";

    /// The examples of S3's reference.
    #[test]
    fn requests_with_a_query_are_signed() {
        let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", S3_KEY, None).unwrap();
        let empty = hex(&Sha256::digest(""));
        let common = [
            ("host", S3_HOST.to_owned()),
            ("x-amz-content-sha256", empty.clone()),
            ("x-amz-date", S3.time.to_owned()),
        ];
        let range = [&common[..], &[("range", String::from("bytes=0-9"))]].concat();
        for (path, query, headers, expected) in [
            (
                "/test.txt",
                String::new(),
                &range[..],
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "/",
                query(&[("prefix", "J"), ("max-keys", "2")]),
                &common[..],
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let request = Signed {
                method: "GET",
                path,
                query: &query,
                headers,
                payload: &empty,
            };
            assert_eq!(signature(&request, &S3, &credentials), expected, "{path}");
        }
    }

    /// The example of S3's reference.
    #[test]
    fn urls_are_signed() {
        let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", S3_KEY, None).unwrap();
        let day = Duration::from_secs(86400);
        let query = presigned("GET", S3_HOST, "/test.txt", day, &S3, &credentials);
        assert_eq!(
            query,
            "X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
             &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
        let token = Credentials::new("A", "hidden", Some("t/k")).unwrap();
        let query = presigned("PUT", S3_HOST, "/x", day, &S3, &token);
        assert!(query.contains("&X-Amz-Security-Token=t%2Fk&"), "{query}");
        assert!(!query.contains("hidden"));
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
            let plain = iso_time(time).replace(['-', ':'], "");
            assert_eq!(plain, text);
        }
    }
}
