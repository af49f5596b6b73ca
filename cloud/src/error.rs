//! What can go wrong.

use std::io;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why the cloud cannot be had, or does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There are no settings, or no good ones.
    #[error("{what}")]
    Settings {
        /// What is missing or wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A file cannot be read.
    #[error("cannot {what}")]
    Io {
        /// The operation and what it was done to.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The service could not be asked, or its answer did not arrive.
    #[error("{service} at {host} cannot be reached: {reason}")]
    Unreachable {
        /// Name of the service.
        service: &'static str,
        /// Its host, and port.
        host: String,
        /// Why.
        reason: String,
    },
    /// The service refuses.
    #[error("{service} refuses {operation}: {code}: {message}")]
    Refused {
        /// Name of the service.
        service: &'static str,
        /// What was asked of it.
        operation: String,
        /// The status of HTTP.
        status: u16,
        /// The service's code of the error, such as `AuthFailure`; `HTTP 500` when there is none.
        code: String,
        /// What the service says.
        message: String,
    },
    /// The service's answer makes no sense.
    #[error("{service} has answered {operation} with what cannot be understood: {reason}")]
    Malformed {
        /// Name of the service.
        service: &'static str,
        /// What was asked of it.
        operation: String,
        /// What is wrong.
        reason: String,
    },
    /// Whoever was to be asked for more bytes wanted to stop.
    #[error("it was stopped")]
    Stopped,
    /// The image changed while it was read.
    #[error("the image was changed while it was published")]
    Changed,
    /// The cloud has given the snapshot up.
    #[error("snapshot {id} has failed: {reason}")]
    Snapshot {
        /// Its id.
        id: String,
        /// What the cloud says.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io {
            what: what.into(),
            source,
        }
    }

    /// The service's code, when it has refused.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether it may be otherwise the next time.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            // Somebody on the way may have answered in the service's place.
            Error::Unreachable { .. } | Error::Malformed { .. } => true,
            Error::Refused { status, code, .. } => is_passing(*status, code),
            _ => false,
        }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Settings { hint, .. } => hint.clone(),
            Error::Unreachable { .. } => String::from(
                "check the network, the region, and AWS_ENDPOINT_URL if it is set; then give the same command again",
            ),
            Error::Refused {
                service,
                operation,
                code,
                ..
            } => advice(service, operation, code)?,
            Error::Changed => String::from("publish it again when nothing writes to it"),
            Error::Snapshot { .. } => String::from("publish the image again"),
            _ => return None,
        })
    }
}

/// What to do about a refusal, by the codes of the services' references.
fn advice(service: &str, operation: &str, code: &str) -> Option<String> {
    // Codes of the services that speak JSON end so, and are otherwise the same.
    let code = code.strip_suffix("Exception").unwrap_or(code);
    Some(match code {
        "AuthFailure"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClient"
        | "InvalidSignature"
        | "IncompleteSignature" => String::from(
            "check the access key and its secret, the region, and this machine's clock",
        ),
        "ExpiredToken" | "RequestExpired" | "RequestTimeTooSkewed" | "TokenRefreshRequired" => {
            String::from(
                "get new credentials (aws sso login, aws sts ...), and check this machine's clock",
            )
        }
        "UnauthorizedOperation" | "AccessDenied" | "UnauthorizedAccess" => format!(
            "the credentials need the permission {}:{}",
            service.to_lowercase(),
            // The one operation that has not its permission's name.
            match operation {
                "ListObjectsV2" => "ListBucket",
                other => other,
            }
        ),
        "NoSuchBucket" => String::from(
            "check its name and the region, or make it: aws s3 mb s3://NAME",
        ),
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraint" => {
            String::from("the bucket is in another region: set AWS_REGION to that, or take another bucket")
        }
        "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" | "InvalidAMIID.Unavailable" => String::from(
            "images belong to a region: check AWS_REGION, or publish it there: apppot image publish ec2",
        ),
        "InvalidInstanceType" => String::from("name another type of machine"),
        "OptInRequired" | "PendingVerification" | "Blocked" => String::from(
            "the account is not ready for this: look at its messages from the provider",
        ),
        "InvalidAMIName.Duplicate" => {
            String::from("another image has that name: choose one with --name")
        }
        "InvalidAMIName.Malformed" => String::from("choose another name with --name"),
        "ServiceQuotaExceeded" | "ResourceLimitExceeded" | "ConcurrentSnapshotLimitExceeded" => {
            quota(service)
        }
        // Those of spot machines have no "Limit" in their names.
        limit if limit.ends_with("LimitExceeded") && limit != "RequestLimitExceeded"
            || limit.starts_with("MaxSpot") =>
        {
            quota(service)
        }
        "VPCIdNotSpecified" | "DefaultVpcDoesNotExist" => {
            String::from("the account has no default network: name a subnet with --ec2-subnet")
        }
        "InvalidSubnetID.NotFound" | "InvalidGroup.NotFound" | "InvalidKeyPair.NotFound" => {
            String::from("subnets, groups and keys belong to a region: check the id, and AWS_REGION")
        }
        "InvalidBlockDeviceMapping" => {
            String::from("a disk cannot be smaller than the image: give a larger --ec2-disk, or none")
        }
        full if is_capacity(full) => String::from(
            "the cloud has no such machine free now: take another type or subnet, a machine that is not spot, or try later",
        ),
        "Unsupported" | "UnsupportedOperation" => {
            String::from("this type of machine is not to be had there, or does not boot such an image: take another")
        }
        busy if is_throttling(busy) => String::from("the cloud is busy: try again later"),
        _ => return None,
    })
}

fn quota(service: &str) -> String {
    format!("a quota of the account is used up: free what is not needed, or ask for a higher quota of {service}")
}

/// Whether there is no machine free: that may last.
fn is_capacity(code: &str) -> bool {
    matches!(
        code,
        "InsufficientInstanceCapacity"
            | "InsufficientHostCapacity"
            | "InsufficientCapacityOnHost"
            | "InsufficientCapacity"
            | "SpotMaxPriceTooLow"
    )
}

/// Whether a refusal with this status and code may be none the next time.
pub(crate) fn is_passing(status: u16, code: &str) -> bool {
    match status {
        // Of a kind that the cloud counts among its own troubles.
        500.. => !is_capacity(code),
        _ => status == 429 || is_throttling(code),
    }
}

/// Whether it was asked too often, or for too much at once: codes that the service gives for it.
fn is_throttling(code: &str) -> bool {
    let code = code.strip_suffix("Exception").unwrap_or(code);
    matches!(
        code,
        "Throttling"
            | "Throttled"
            | "ThrottledRequest"
            | "RequestThrottled"
            | "RequestLimitExceeded"
            | "BandwidthLimitExceeded"
            | "TooManyRequests"
            | "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            // S3's for a connection that stood still, with the status 400.
            | "RequestTimeout"
            | "PriorRequestNotComplete"
            | "EC2Throttled"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(service: &'static str, code: &str) -> Option<String> {
        let error = Error::Refused {
            service,
            operation: String::from("RegisterImage"),
            status: 400,
            code: code.to_owned(),
            message: String::from("no"),
        };
        error.hint()
    }

    #[test]
    fn refusals_come_with_advice() {
        for (code, says) in [
            ("AuthFailure", "access key"),
            ("InvalidSignatureException", "clock"),
            ("ExpiredToken", "new credentials"),
            ("UnauthorizedOperation", "ec2:RegisterImage"),
            ("AccessDeniedException", "ec2:RegisterImage"),
            ("SnapshotLimitExceeded", "quota"),
            ("ServiceQuotaExceededException", "quota"),
            ("RequestLimitExceeded", "later"),
            ("InsufficientInstanceCapacity", "another type"),
            ("VcpuLimitExceeded", "quota"),
            ("MaxSpotInstanceCountExceeded", "quota"),
            ("VPCIdNotSpecified", "--ec2-subnet"),
            ("InvalidAMIName.Duplicate", "--name"),
            ("NoSuchBucket", "aws s3 mb"),
            ("InvalidAMIID.NotFound", "AWS_REGION"),
        ] {
            let hint = refused("EC2", code).unwrap_or_default();
            assert!(hint.contains(says), "{code}: {hint}");
        }
        assert_eq!(refused("EC2", "InvalidParameterValue"), None);
    }
    #[test]
    fn what_may_be_otherwise_later_is_told_from_what_stays() {
        let error = |status, code: &str| Error::Refused {
            service: "S3",
            operation: String::from("ListObjectsV2"),
            status,
            code: code.to_owned(),
            message: String::new(),
        };
        for (status, code) in [
            (503, "SlowDown"),
            (503, "HTTP 503"),
            (500, "SomethingNew"),
            (429, "HTTP 429"),
            (400, "RequestLimitExceeded"),
            (400, "RequestTimeout"),
        ] {
            assert!(error(status, code).passes(), "{code}");
        }
        for (status, code) in [
            (403, "AccessDenied"),
            (404, "HTTP 404"),
            (400, "ExpiredToken"),
            (500, "InsufficientInstanceCapacity"),
        ] {
            assert!(!error(status, code).passes(), "{code}");
        }
        let hint = error(403, "AccessDenied").hint().unwrap();
        assert!(hint.ends_with("s3:ListBucket"), "{hint}");
    }
}
