//! Who we are to a cloud.

use std::fmt;

use crate::profile::Profiles;
use crate::{Environment, Error, Result};

/// An access key. Its `Debug` text has no secret.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) id: String,
    pub(crate) secret: String,
    /// Of temporary credentials.
    pub(crate) token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

const HINT: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run 'aws configure'; \
     what else the AWS tools take comes by: eval \"$(aws configure export-credentials --format env)\"";

impl Credentials {
    /// An access key, its secret, and the token of temporary ones.
    ///
    /// # Errors
    /// They are no such: they go into headers.
    pub fn new(id: &str, secret: &str, token: Option<&str>) -> Result<Self> {
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if !is_plain(id) || !is_plain(secret) || !token.is_none_or(is_plain) {
            return Err(none("the access key is malformed"));
        }
        Ok(Credentials {
            id: id.to_owned(),
            secret: secret.to_owned(),
            token: token.map(str::to_owned),
        })
    }

    /// Those of the environment, else those of the profile.
    pub(crate) fn find(
        environment: &dyn Environment,
        profile: &str,
        credentials: &Profiles,
        config: &Profiles,
    ) -> Result<Self> {
        let variable = |name: &str| environment.get(name);
        let of_file = |key: &str| {
            let section = crate::config::section(profile);
            credentials
                .get(profile, key)
                .or_else(|| config.get(&section, key))
        };
        let pair = (
            variable("AWS_ACCESS_KEY_ID"),
            variable("AWS_SECRET_ACCESS_KEY"),
        );
        match pair {
            (Some(id), Some(secret)) => {
                return Self::new(&id, &secret, variable("AWS_SESSION_TOKEN").as_deref());
            }
            (None, None) => {}
            _ => {
                return Err(none(
                    "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is not set",
                ));
            }
        }
        match (of_file("aws_access_key_id"), of_file("aws_secret_access_key")) {
            (Some(id), Some(secret)) => {
                Self::new(&id, &secret, of_file("aws_session_token").as_deref())
            }
            _ => Err(none(&format!(
                "there are no credentials: no AWS_ACCESS_KEY_ID, and no access key in the profile '{profile}'"
            ))),
        }
    }

    /// The text without our secrets, should a service have repeated them.
    pub(crate) fn redact(&self, text: &str) -> String {
        let mut text = text.replace(&self.secret, "(secret)");
        if let Some(token) = &self.token {
            text = text.replace(token, "(secret)");
        }
        text
    }
}

fn none(what: &str) -> Error {
    Error::Settings {
        what: what.to_owned(),
        hint: HINT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials::new("AKID", "very/secret", Some("tok")).unwrap();
        let shown = format!(
            "{credentials:?} {}",
            credentials.redact("a very/secret tok!")
        );
        assert_eq!(shown, "Credentials a (secret) (secret)!");
    }

    #[test]
    fn what_is_no_header_is_refused_without_being_shown() {
        for (id, secret, token) in [
            ("a\r\nb", "s", None),
            ("a", "hidden\n", None),
            ("a", "", None),
            ("a", "s", Some("t\0")),
        ] {
            let error = Credentials::new(id, secret, token).unwrap_err();
            assert!(!format!("{error:?}{error}").contains("hidden"));
        }
    }
}
