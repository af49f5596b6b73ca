//! Machines of EC2: started with a contract as user-data, found by their tags, ended.

use base64::prelude::{Engine, BASE64_STANDARD};
use roxmltree::Node;

use crate::config::settings;
use crate::ec2::{child, parameters, text, Ec2, ROOT_DEVICE};
use crate::Result;

/// The most that user-data may be, bytes. Some clouds take more, and cut it.
pub const MOST_USER_DATA: usize = 16 << 10;

/// A machine that is to be. It ends when it powers itself off, and gives user-data only for a token.
#[derive(Debug, Clone, Copy)]
pub struct NewInstance<'a> {
    /// Id of the image, `ami-…`.
    pub image: &'a str,
    /// Type, such as `t3.small`.
    pub kind: &'a str,
    /// The contract. It has no secrets but URLs that expire.
    pub user_data: &'a [u8],
    /// The same token starts the same machine, however often it is asked for: 1 to 64 characters of ASCII.
    pub token: &'a str,
    /// Names and values.
    pub tags: &'a [(&'a str, &'a str)],
    /// Where it is; else in the account's default network.
    pub subnet: Option<&'a str>,
    /// Security groups; else the network's default one.
    pub groups: &'a [String],
    /// Name of the key for logging in; else nobody can.
    pub key: Option<&'a str>,
    /// The size of its disk, GiB; else the image's.
    pub disk: Option<u64>,
    /// Whether the cloud may end it when it wants the capacity for others, for less money.
    pub is_spot: bool,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id, `i-…`.
    pub id: String,
    /// `pending`, `running`, `shutting-down`, `terminated` …
    pub state: String,
    /// Why it is in that state, when the cloud says so: a code, such as `Client.UserInitiatedShutdown`, and a text.
    pub reason: Option<(String, String)>,
    /// When it was started, as the cloud writes it (ISO 8601).
    pub started: String,
    /// Names and values.
    pub tags: Vec<(String, String)>,
}

impl Instance {
    /// Whether nothing runs in it any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(&self.state[..], "terminated" | "stopped")
    }

    /// The value of a tag.
    #[must_use]
    pub fn tag(&self, key: &str) -> Option<&str> {
        let found = self.tags.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| &value[..])
    }
}

impl NewInstance<'_> {
    /// What is asked of RunInstances: names and values.
    ///
    /// # Errors
    /// The user-data is too long, or the token is none.
    pub fn parameters(&self) -> Result<Vec<(String, String)>> {
        if self.user_data.len() > MOST_USER_DATA {
            let what = format!("user-data of {} bytes is too long", self.user_data.len());
            return Err(settings(
                what,
                "it may be 16 KiB; make the command line and the environment shorter",
            ));
        }
        if self.token.is_empty() || self.token.len() > 64 || !self.token.is_ascii() {
            return Err(settings("the token is none", "this is a mistake in AppPot"));
        }
        let user_data = BASE64_STANDARD.encode(self.user_data);
        let mut all = parameters(&[
            ("ImageId", self.image),
            ("InstanceType", self.kind),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("ClientToken", self.token),
            ("UserData", &user_data),
            ("InstanceInitiatedShutdownBehavior", "terminate"),
            ("MetadataOptions.HttpTokens", "required"),
            ("MetadataOptions.HttpEndpoint", "enabled"),
            ("TagSpecification.1.ResourceType", "instance"),
            ("TagSpecification.2.ResourceType", "volume"),
        ]);
        let mut add = |name: String, value: &str| all.push((name, value.to_owned()));
        for kind in 1..=2 {
            for (number, (key, value)) in (1..).zip(self.tags) {
                add(format!("TagSpecification.{kind}.Tag.{number}.Key"), key);
                add(format!("TagSpecification.{kind}.Tag.{number}.Value"), value);
            }
        }
        for (number, group) in (1..).zip(self.groups) {
            add(format!("SecurityGroupId.{number}"), group);
        }
        if let Some(subnet) = self.subnet {
            add(String::from("SubnetId"), subnet);
        }
        if let Some(key) = self.key {
            add(String::from("KeyName"), key);
        }
        if let Some(disk) = self.disk {
            add(String::from("BlockDeviceMapping.1.DeviceName"), ROOT_DEVICE);
            let size = String::from("BlockDeviceMapping.1.Ebs.VolumeSize");
            add(size, &disk.to_string());
        }
        if self.is_spot {
            add(String::from("InstanceMarketOptions.MarketType"), "spot");
            add(
                String::from("InstanceMarketOptions.SpotOptions.SpotInstanceType"),
                "one-time",
            );
            add(
                String::from("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"),
                "terminate",
            );
        }
        Ok(all)
    }
}

impl Ec2 {
    /// Starts a machine.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses; what is asked for is beyond its limits.
    pub fn run(&self, new: &NewInstance<'_>) -> Result<Instance> {
        let operation = "RunInstances";
        let found = self.ask(operation, new.parameters()?, |root| {
            let items = child(root, "instancesSet")?;
            items.children().find(Node::is_element).map(instance)
        })?;
        found.ok_or_else(|| self.malformed(operation, "it names no instance"))
    }

    /// Machines of which `filter` (such as `instance-id`, `tag:KEY`) is `value`. Those that have ended stay listed for
    /// an hour.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses.
    pub fn instances(&self, filter: &str, value: &str) -> Result<Vec<Instance>> {
        let parameters = parameters(&[("Filter.1.Name", filter), ("Filter.1.Value.1", value)]);
        let reservations =
            self.list("DescribeInstances", parameters, "reservationSet", |item| {
                let set = child(item, "instancesSet");
                let items = set.into_iter().flat_map(|set| set.children());
                items
                    .filter(Node::is_element)
                    .map(instance)
                    .collect::<Vec<_>>()
            })?;
        Ok(reservations.into_iter().flatten().collect())
    }

    /// Ends machines. Harmless for those that have ended already.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses.
    pub fn terminate(&self, ids: &[&str]) -> Result<()> {
        let names = (1..).map(|number: u32| format!("InstanceId.{number}"));
        let parameters = names.zip(ids.iter().map(|id| (*id).to_owned())).collect();
        self.ask("TerminateInstances", parameters, |_| ())
    }

    /// The last of what a machine has written to its console, as new as the cloud has it. Untrusted bytes.
    ///
    /// # Errors
    /// The cloud cannot be reached, or refuses.
    pub fn console(&self, id: &str) -> Result<Vec<u8>> {
        let operation = "GetConsoleOutput";
        let ask = |names: &[(&str, &str)]| {
            self.ask(operation, parameters(names), |root| {
                text(root, "output").unwrap_or_default()
            })
        };
        // Not every type of machine has the latest.
        let encoded = ask(&[("InstanceId", id), ("Latest", "true")]);
        let encoded = encoded.or_else(|_| ask(&[("InstanceId", id)]))?;
        let encoded: String = encoded.split_whitespace().collect();
        BASE64_STANDARD
            .decode(encoded)
            .map_err(|error| self.malformed(operation, error.to_string()))
    }
}

fn instance(item: Node<'_, '_>) -> Instance {
    let state = child(item, "instanceState").and_then(|state| text(state, "name"));
    let reason = child(item, "stateReason").map(|reason| {
        let field = |name: &str| text(reason, name).unwrap_or_default();
        (field("code"), field("message"))
    });
    let tags = child(item, "tagSet");
    let tags = tags.into_iter().flat_map(|set| set.children());
    let tags = tags.filter(Node::is_element).map(|tag| {
        let field = |name: &str| text(tag, name).unwrap_or_default();
        (field("key"), field("value"))
    });
    Instance {
        id: text(item, "instanceId").unwrap_or_default(),
        state: state.unwrap_or_default(),
        reason,
        started: text(item, "launchTime").unwrap_or_default(),
        tags: tags.collect(),
    }
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    fn new<'a>(user_data: &'a [u8], tags: &'a [(&'a str, &'a str)]) -> NewInstance<'a> {
        NewInstance {
            image: "ami-1",
            kind: "t3.small",
            user_data,
            token: "t",
            tags,
            subnet: None,
            groups: &[],
            key: None,
            disk: Some(20),
            is_spot: true,
        }
    }

    #[test]
    fn machines_end_with_their_job_and_want_tokens() {
        let all = new(b"#apppot/1\n", &[("a", "b")]).parameters().unwrap();
        for (name, value) in [
            ("InstanceInitiatedShutdownBehavior", "terminate"),
            ("MetadataOptions.HttpTokens", "required"),
            ("UserData", "I2FwcHBvdC8xCg=="),
            ("TagSpecification.2.Tag.1.Value", "b"),
            ("BlockDeviceMapping.1.Ebs.VolumeSize", "20"),
            (
                "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior",
                "terminate",
            ),
        ] {
            let found = all.iter().find(|(key, _)| key == name);
            assert_eq!(found.map(|(_, found)| &found[..]), Some(value), "{name}");
        }
    }

    #[test]
    fn what_the_cloud_would_cut_is_refused() {
        let most = vec![b'x'; MOST_USER_DATA];
        assert!(new(&most, &[]).parameters().is_ok());
        let error = new(&[&most[..], b"x"].concat(), &[])
            .parameters()
            .unwrap_err();
        assert!(error.to_string().contains("16385"), "{error}");
    }

    #[test]
    fn machines_are_read() {
        let text = "<item><instanceId>i-1</instanceId><instanceState><code>48</code><name>terminated</name></instanceState>\
                    <reason/><launchTime>2026-11-23T05:00:00.000Z</launchTime>\
                    <tagSet><item><key>k</key><value>v</value></item></tagSet>\
                    <stateReason><code>x</code><message>Spot</message></stateReason></item>";
        let document = Document::parse(text).unwrap();
        let found = instance(document.root_element());
        assert_eq!((&found.id[..], &found.state[..]), ("i-1", "terminated"));
        assert_eq!(
            found.reason,
            Some((String::from("x"), String::from("Spot")))
        );
        assert!(found.has_ended());
        assert_eq!(found.tag("k"), Some("v"));
        assert_eq!(found.tags, [(String::from("k"), String::from("v"))]);
    }
}
