//! EC2: images, snapshots and their tags. The query interface of version 2016-11-15.

use roxmltree::{Document, Node};

use crate::body::Body;
use crate::http::{Client, Request};
use crate::sign::encode;
use crate::{Config, Error, Result, Service};

/// The version of the interface.
const VERSION: &str = "2016-11-15";
/// What our images call their root.
pub(crate) const ROOT_DEVICE: &str = "/dev/xvda";
/// The most pages of a list; a service that never ends one is broken.
const PAGES: usize = 1000;

/// The service.
#[derive(Debug)]
pub struct Ec2 {
    client: Client,
}

/// An image that the cloud boots machines of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudImage {
    /// Its id, `ami-…`.
    pub id: String,
    /// Its name, unique within the account and region.
    pub name: String,
    /// `available`, `pending`, `failed` …
    pub state: String,
    /// The snapshot that its root is made of.
    pub snapshot: Option<String>,
}

/// The state of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id, `snap-…`.
    pub id: String,
    /// `pending`, `completed`, `error` …
    pub state: String,
    /// What is to be said of the state.
    pub message: String,
}

/// An image that is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewImage<'a> {
    /// Unique within the account and region.
    pub name: &'a str,
    /// For people.
    pub description: &'a str,
    /// What the root is made of.
    pub snapshot: &'a str,
}

/// Names and values of a request.
pub(crate) type Parameters = Vec<(String, String)>;

pub(crate) fn parameters(pairs: &[(&str, &str)]) -> Parameters {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

impl Ec2 {
    /// The service of the configured cloud.
    ///
    /// # Errors
    /// The configured endpoint is no URL.
    pub fn new(config: &Config) -> Result<Self> {
        let client = Client::new(Service::Ec2, config)?;
        Ok(Ec2 { client })
    }

    /// Our own images of which `filter` (such as `name`, or `tag:KEY`) is `value`.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn images(&self, filter: &str, value: &str) -> Result<Vec<CloudImage>> {
        let parameters = parameters(&[
            ("Owner.1", "self"),
            ("Filter.1.Name", filter),
            ("Filter.1.Value.1", value),
        ]);
        self.list("DescribeImages", parameters, "imagesSet", |item| {
            let field = |name: &str| text(item, name).unwrap_or_default();
            let snapshot = item.descendants().find(|n| n.has_tag_name("snapshotId"));
            CloudImage {
                id: field("imageId"),
                name: field("name"),
                state: field("imageState"),
                snapshot: snapshot.and_then(|node| Some(node.text()?.to_owned())),
            }
        })
    }

    /// A snapshot, if there is one with that id.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn snapshot(&self, id: &str) -> Result<Option<Snapshot>> {
        let parameters = parameters(&[("Filter.1.Name", "snapshot-id"), ("Filter.1.Value.1", id)]);
        let found = self.list("DescribeSnapshots", parameters, "snapshotSet", |item| {
            let field = |name: &str| text(item, name).unwrap_or_default();
            Snapshot {
                id: field("snapshotId"),
                state: field("status"),
                message: field("statusMessage"),
            }
        })?;
        Ok(found.into_iter().find(|snapshot| snapshot.id == id))
    }

    /// Makes an image of a snapshot, and returns its id: for 64-bit PCs, with NVMe and ENA, booted
    /// by UEFI where the type of machine has it, and with metadata that wants a token.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn register(&self, image: &NewImage<'_>) -> Result<String> {
        let operation = "RegisterImage";
        let parameters = parameters(&[
            ("Name", image.name),
            ("Description", image.description),
            ("Architecture", "x86_64"),
            ("VirtualizationType", "hvm"),
            ("EnaSupport", "true"),
            ("BootMode", "uefi-preferred"),
            ("ImdsSupport", "v2.0"),
            ("RootDeviceName", ROOT_DEVICE),
            ("BlockDeviceMapping.1.DeviceName", ROOT_DEVICE),
            ("BlockDeviceMapping.1.Ebs.SnapshotId", image.snapshot),
            ("BlockDeviceMapping.1.Ebs.VolumeType", "gp3"),
            ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ]);
        self.ask(operation, parameters, |root| text(root, "imageId"))?
            .ok_or_else(|| self.malformed(operation, "it names no image"))
    }

    /// Puts tags on things.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn tag(&self, ids: &[&str], tags: &[(&str, &str)]) -> Result<()> {
        let mut parameters = Parameters::new();
        for (number, id) in (1..).zip(ids) {
            parameters.push((format!("ResourceId.{number}"), (*id).to_owned()));
        }
        for (number, (key, value)) in (1..).zip(tags) {
            parameters.push((format!("Tag.{number}.Key"), (*key).to_owned()));
            parameters.push((format!("Tag.{number}.Value"), (*value).to_owned()));
        }
        self.ask("CreateTags", parameters, |_| ())
    }

    /// An answer that makes no sense.
    pub(crate) fn malformed(&self, operation: &str, reason: impl Into<String>) -> Error {
        self.client.malformed(operation, reason)
    }

    /// All items of a list, page by page.
    pub(crate) fn list<T>(
        &self,
        action: &str,
        parameters: Parameters,
        set: &str,
        read: impl Fn(Node<'_, '_>) -> T,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut token = None;
        for _ in 0..PAGES {
            let mut parameters = parameters.clone();
            parameters.extend(token.map(|token| (String::from("NextToken"), token)));
            token = self.ask(action, parameters, |root| {
                let set = child(root, set);
                let items = set.into_iter().flat_map(|set| set.children());
                let items = items.filter(|node| node.has_tag_name("item"));
                all.extend(items.map(&read));
                text(root, "nextToken").filter(|token| !token.is_empty())
            })?;
            if token.is_none() {
                return Ok(all);
            }
        }
        Err(self.malformed(action, "its list has no end"))
    }

    pub(crate) fn ask<T>(
        &self,
        action: &str,
        parameters: Parameters,
        read: impl FnOnce(Node<'_, '_>) -> T,
    ) -> Result<T> {
        let mut body = format!("Action={action}&Version={VERSION}");
        for (name, value) in parameters {
            body.push_str(&format!("&{}={}", encode(&name), encode(&value)));
        }
        let kind = "application/x-www-form-urlencoded; charset=utf-8";
        let answer = self.client.call(&Request {
            operation: action,
            method: "POST",
            path: String::from("/"),
            headers: vec![("content-type", kind.to_owned())],
            query: String::new(),
            body: Body::Bytes(body.as_bytes()),
            signs_body: true,
        })?;
        let malformed = |reason: String| self.malformed(action, reason);
        let body = String::from_utf8(answer.body).map_err(|error| malformed(error.to_string()))?;
        let document = Document::parse(&body).map_err(|error| malformed(error.to_string()))?;
        Ok(read(document.root_element()))
    }
}

pub(crate) fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    // The namespace differs among clouds.
    node.children()
        .find(|child| child.tag_name().name() == name)
}

pub(crate) fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name)?.text().map(str::to_owned)
}
