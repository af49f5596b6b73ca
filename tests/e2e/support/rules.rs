//! What a real cloud refuses, and moto does not.

use std::time::{Duration, SystemTime};

use apppot_cloud::iso_time;
use ct_codecs::{Base64, Decoder};

use super::moto::{decoded, Request};

/// The most that a clock may be wrong (EC2's and S3's references).
const SKEW: Duration = Duration::from_secs(300);
/// The most that user-data may be, bytes.
const MOST_USER_DATA: usize = 16 << 10;

/// A refusal: its code, and why.
pub(super) type Refused = (&'static str, String);

/// A time as it is in signatures. Those of other times are smaller or larger as the times are.
fn stamp(time: SystemTime) -> String {
    iso_time(time).replace(['-', ':'], "")
}

/// Whose request it is: the access key that it is signed with.
pub(super) fn access_key(request: &Request) -> Option<&str> {
    let header = request.headers.get("authorization")?;
    let rest = header.strip_prefix("AWS4-HMAC-SHA256 Credential=")?;
    Some(rest.split_once('/')?.0)
}

/// Whether it is signed at all, and in time. (That signatures are true is another test's.)
pub(super) fn check_signed(request: &Request) -> Result<(), Refused> {
    let refused = |why: &str| Err(("AccessDenied", why.to_owned()));
    let now = SystemTime::now();
    if access_key(request).is_some() {
        let signed = request.headers.get("x-amz-date");
        let times = stamp(now - SKEW)..=stamp(now + SKEW);
        return match signed.is_some_and(|at| times.contains(at)) {
            true => Ok(()),
            false => Err(("RequestTimeTooSkewed", format!("signed at {signed:?}"))),
        };
    }
    let query = request.what.split_once('?').map_or("", |(_, query)| query);
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let (Some(at), Some(valid), Some(_)) = (
        value("X-Amz-Date"),
        value("X-Amz-Expires"),
        value("X-Amz-Signature"),
    ) else {
        return refused("it is not signed");
    };
    let valid = Duration::from_secs(valid.parse().unwrap_or(0));
    match at <= stamp(now + SKEW) && at >= stamp(now - valid) {
        true => Ok(()),
        false => refused("Request has expired"),
    }
}

/// What RunInstances must say, here and as [`crate::ec2`] documents it. The user-data.
pub(super) fn check_new(request: &Request) -> Result<String, Refused> {
    let value = |name: &str| request.parameter(name).map(|text| decoded(&text));
    let invalid = |why: &str| ("InvalidParameterValue", why.to_owned());
    for (name, expected) in [
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("MetadataOptions.HttpTokens", "required"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("TagSpecification.1.ResourceType", "instance"),
    ] {
        if value(name).as_deref() != Some(expected) {
            return Err(invalid(&format!("{name} is not {expected}")));
        }
    }
    if value("ClientToken").is_none_or(|token| token.is_empty() || token.len() > 64) {
        return Err(invalid("ClientToken is none"));
    }
    let encoded = value("UserData").ok_or_else(|| invalid("UserData is missing"))?;
    let user_data = Base64::decode_to_vec(&encoded, None)
        .map_err(|_| ("InvalidUserData.Malformed", String::from("it is no Base64")))?;
    if user_data.len() > MOST_USER_DATA {
        return Err(invalid("User data is limited to 16384 bytes"));
    }
    String::from_utf8(user_data).map_err(|_| invalid("UserData of AppPot is text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(what: &str, headers: &[(&str, &str)], body: &str) -> Request {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Request {
            what: what.to_owned(),
            headers: headers.iter().map(owned).collect(),
            body: body.as_bytes().to_owned(),
            head: String::new(),
        }
    }

    #[test]
    fn a_machine_is_started_with_all_that_is_asked_for() {
        let parts = [
            "Action=RunInstances",
            "MinCount=1",
            "MaxCount=1",
            "MetadataOptions.HttpTokens=required",
            "InstanceInitiatedShutdownBehavior=terminate",
            "TagSpecification.1.ResourceType=instance",
            "ClientToken=apppot-1",
            "UserData=I2FwcHBvdC8x",
        ];
        let check = |body: &str| check_new(&request("EC2 RunInstances", &[], body));
        assert_eq!(check(&parts.join("&")).unwrap(), "#apppot/1");
        for part in &parts[1..] {
            let left: Vec<&str> = parts.iter().copied().filter(|one| one != part).collect();
            assert!(check(&left.join("&")).is_err(), "without {part}");
        }
        let most = MOST_USER_DATA / 3 * 4;
        for (len, fits) in [(most, true), (most + 4, false)] {
            let body = format!("{}&UserData={}", parts[..7].join("&"), "A".repeat(len));
            assert_eq!(check(&body).is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn signatures_are_of_now() {
        let key = "AWS4-HMAC-SHA256 Credential=KEY/20260101/r/ec2/aws4_request, Signature=0";
        let ago = |seconds| stamp(SystemTime::now() - Duration::from_secs(seconds));
        for (seconds, good) in [(0, true), (200, true), (400, false)] {
            let headers = [("authorization", key), ("x-amz-date", &ago(seconds))];
            let request = request("EC2 RunInstances", &headers, "");
            assert_eq!(access_key(&request), Some("KEY"));
            assert_eq!(check_signed(&request).is_ok(), good, "{seconds}");
        }
        for (seconds, good) in [(0, true), (500, true), (700, false)] {
            let at = ago(seconds);
            let what = format!("GET /b/o?X-Amz-Date={at}&X-Amz-Expires=600&X-Amz-Signature=0");
            assert_eq!(check_signed(&request(&what, &[], "")).is_ok(), good);
        }
        assert!(check_signed(&request("GET /b/o", &[], "")).is_err());
    }
}
