//! Region, endpoints and credentials, found where the AWS tools find them.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::profile::Profiles;
use crate::sign::hex;
use crate::{Credentials, Error, Result};

/// Variables of an environment; empty ones count as none.
pub trait Environment {
    /// The value of a variable.
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Environment for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name).filter(|value| !value.is_empty())
    }
}

/// A service of a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Machines and images.
    Ec2,
    /// The blocks of snapshots (EBS direct).
    Ebs,
    /// Objects.
    S3,
    /// What things cost (AWS Price List).
    Pricing,
}

impl Service {
    /// As people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Service::Ec2 => "EC2",
            Service::Ebs => "EBS",
            Service::S3 => "S3",
            Service::Pricing => "Pricing",
        }
    }

    /// As signatures and names of hosts have it.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Service::Ec2 => "ec2",
            Service::Ebs => "ebs",
            Service::S3 => "s3",
            Service::Pricing => "pricing",
        }
    }
}

/// Everything that is needed to ask.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who asks.
    pub credentials: Credentials,
    /// The region, such as `eu-central-1`.
    pub region: String,
    /// How often a request is made at most.
    pub(crate) attempts: u32,
    /// How long a service that is to say or take something may do neither.
    pub(crate) silence: Duration,
    /// One for all services.
    endpoint: Option<String>,
    /// Of single services.
    endpoints: Vec<(Service, String)>,
}

/// How often a request is made at most, when nobody says. With the pauses between them, that is
/// about half a minute of patience.
const ATTEMPTS: u32 = 10;
/// How long nothing may be heard, and how long by those who ask again by themselves.
const SILENCE: Duration = Duration::from_secs(60);
const SHORT_SILENCE: Duration = Duration::from_secs(10);

/// The section of a profile in the file `config`; in `credentials` it has the profile's own name.
pub(crate) fn section(profile: &str) -> String {
    match profile {
        "default" => String::from("default"),
        other => format!("profile {other}"),
    }
}

impl Config {
    /// Looks at the environment and the AWS tools' files.
    ///
    /// # Errors
    /// There are no credentials or no region, or something is malformed.
    pub fn load(environment: &dyn Environment) -> Result<Self> {
        let get = |name: &str| environment.get(name);
        let file = |variable: &str, name: &str| {
            let below_home = || Some(PathBuf::from(get("HOME")?).join(".aws").join(name));
            let path = get(variable).map(PathBuf::from).or_else(below_home);
            path.map_or_else(|| Ok(Profiles::default()), |path| Profiles::read(&path))
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
        let config = file("AWS_CONFIG_FILE", "config")?;
        let named = get("AWS_PROFILE").or_else(|| get("AWS_DEFAULT_PROFILE"));
        let profile = named.clone().unwrap_or_else(|| String::from("default"));
        let section = section(&profile);
        if named.is_some() && !credentials.has(&profile) && !config.has(&section) {
            return Err(settings(
                format!("there is no profile '{profile}'"),
                "check AWS_PROFILE; 'aws configure list-profiles' lists them",
            ));
        }
        let region = get("AWS_REGION")
            .or_else(|| get("AWS_DEFAULT_REGION"))
            .or_else(|| config.get(&section, "region"));
        let region = region.ok_or_else(|| {
            settings(
                "there is no region",
                "set AWS_REGION, such as eu-central-1, or run 'aws configure'",
            )
        })?;
        // It becomes part of a host's name.
        let is_region = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !region.chars().all(is_region) {
            return Err(settings(
                format!("'{region}' is no region"),
                "set AWS_REGION, such as eu-central-1",
            ));
        }
        let services = [Service::Ec2, Service::Ebs, Service::S3, Service::Pricing];
        let endpoints = services.into_iter().filter_map(|service| {
            let name = format!("AWS_ENDPOINT_URL_{}", service.id().to_uppercase());
            Some((service, get(&name)?))
        });
        let attempts = get("AWS_MAX_ATTEMPTS").and_then(|text| text.parse().ok());
        Ok(Config {
            credentials: Credentials::find(environment, &profile, &credentials, &config)?,
            region,
            attempts: attempts.unwrap_or(ATTEMPTS).clamp(1, 100),
            silence: SILENCE,
            endpoint: get("AWS_ENDPOINT_URL").or_else(|| config.get(&section, "endpoint_url")),
            endpoints: endpoints.collect(),
        })
    }

    /// The URL of a service.
    pub(crate) fn endpoint(&self, service: Service) -> String {
        self.own_endpoint(service)
            .unwrap_or_else(|| format!("https://{}", self.usual(service)))
    }

    /// The URL of a service, when it is not Amazon's.
    pub(crate) fn own_endpoint(&self, service: Service) -> Option<String> {
        let own = self.endpoints.iter().find(|(of, _)| *of == service);
        own.map(|(_, url)| url.clone())
            .or_else(|| self.endpoint.clone())
    }

    /// The same for those who ask again by themselves, and have other things to do meanwhile: a request is made once,
    /// and given up soon.
    #[must_use]
    pub fn hasty(&self) -> Self {
        Config {
            attempts: 1,
            silence: SHORT_SILENCE,
            ..self.clone()
        }
    }

    /// A name for this account, region and cloud, for files.
    #[must_use]
    pub fn place(&self) -> String {
        let endpoints = [Service::Ec2, Service::Ebs].map(|service| self.endpoint(service));
        let all = [
            &endpoints[..],
            &[self.region.clone(), self.credentials.id.clone()],
        ]
        .concat();
        hex(&Sha256::digest(all.join("\n"))[..8])
    }

    /// The host of Amazon's.
    pub(crate) fn usual(&self, service: Service) -> String {
        let suffix = match self.region.starts_with("cn-") {
            true => "amazonaws.com.cn",
            false => "amazonaws.com",
        };
        let name = match service {
            Service::Pricing => "api.pricing",
            service => service.id(),
        };
        format!("{name}.{}.{suffix}", self.region)
    }

    /// The same where the price list is: in few regions, for all of them. `None` when machines are not Amazon's,
    /// nor their prices.
    pub(crate) fn of_price_list(&self) -> Option<Self> {
        let named = |service| self.endpoints.iter().any(|(of, _)| *of == service);
        if !named(Service::Pricing) && self.own_endpoint(Service::Ec2).is_some() {
            return None;
        }
        let region = match self.region.starts_with("cn-") {
            true => "cn-northwest-1",
            false => "us-east-1",
        };
        Some(Config {
            region: region.to_owned(),
            ..self.clone()
        })
    }
}

pub(crate) fn settings(what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Settings {
        what: what.into(),
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Config> {
        Config::load(&|name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const KEY: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")];

    #[test]
    fn the_environment_is_enough() {
        let region = [("AWS_REGION", ""), ("AWS_DEFAULT_REGION", "eu-west-1")];
        let config = load(&[&KEY[..], &region].concat()).unwrap();
        assert_eq!(config.credentials.id, "ENV");
        assert_eq!(
            config.endpoint(Service::Ebs),
            "https://ebs.eu-west-1.amazonaws.com"
        );
        let own = [
            ("AWS_ENDPOINT_URL", "http://a"),
            ("AWS_ENDPOINT_URL_EBS", "http://b"),
        ];
        let config = load(&[&KEY[..], &region, &own].concat()).unwrap();
        assert_eq!(config.endpoint(Service::Ec2), "http://a");
        assert_eq!(config.endpoint(Service::Ebs), "http://b");
    }

    #[test]
    fn profiles_are_those_of_the_aws_tools() {
        let home = tempfile::tempdir().unwrap();
        let aws = home.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        let credentials = "[default]\naws_access_key_id=D\naws_secret_access_key=d\n\
                           [work]\naws_access_key_id=W\naws_secret_access_key=w\naws_session_token=t\n";
        let config = "[default]\nregion=r-1\n[profile work]\nregion=r-2\nendpoint_url=http://c\n\
                      [profile sso]\nsso_session=x\nregion=r-3\n";
        std::fs::write(aws.join("credentials"), credentials).unwrap();
        std::fs::write(aws.join("config"), config).unwrap();
        let home = ("HOME", home.path().to_str().unwrap());
        let found = load(&[home]).unwrap();
        assert_eq!((&found.credentials.id[..], &found.region[..]), ("D", "r-1"));
        let found = load(&[home, ("AWS_PROFILE", "work")]).unwrap();
        assert_eq!((&found.credentials.id[..], &found.region[..]), ("W", "r-2"));
        assert_eq!(found.credentials.token.as_deref(), Some("t"));
        assert_eq!(found.endpoint(Service::Ec2), "http://c");
        // Variables come first.
        let found = load(&[&KEY[..], &[home, ("AWS_REGION", "r-9")]].concat()).unwrap();
        assert_eq!(
            (&found.credentials.id[..], &found.region[..]),
            ("ENV", "r-9")
        );
        assert_eq!(found.credentials.token, None);
        for (profile, says) in [("sso", "no credentials"), ("other", "no profile 'other'")] {
            let error = load(&[home, ("AWS_PROFILE", profile)]).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let region = ("AWS_REGION", "eu-west-1");
        for (variables, says) in [
            (vec![region], "no credentials"),
            (vec![KEY[0], region], "one is not set"),
            (KEY.to_vec(), "no region"),
            (vec![KEY[0], KEY[1], ("AWS_REGION", "a/b")], "no region"),
        ] {
            let error = load(&variables).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
