//! EBS direct: snapshots that are written block by block, without a machine.

use base64::prelude::{Engine, BASE64_STANDARD};
use serde_json::{json, Value};

use crate::body::Body;
use crate::http::{random, Client, Request};
use crate::{Config, Result, Service};

/// The size of a snapshot's block, bytes.
pub const BLOCK: u64 = 512 << 10;
/// After so many minutes without a block the cloud gives a snapshot up: a day, in which an upload that
/// was stopped can go on.
const PATIENCE: u32 = 24 * 60;

/// SHA-256 of a block, or of a snapshot's blocks.
pub(crate) type Checksum = [u8; 32];

/// The service.
#[derive(Debug)]
pub struct Ebs {
    client: Client,
}

impl Ebs {
    /// The service of the configured cloud.
    ///
    /// # Errors
    /// The configured endpoint is no URL.
    pub fn new(config: &Config) -> Result<Self> {
        let client = Client::new(Service::Ebs, config)?;
        Ok(Ebs { client })
    }

    /// Begins a snapshot of a volume of so many GiB, and returns its id.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn start(&self, gib: u64, description: &str, tags: &[(&str, &str)]) -> Result<String> {
        let operation = "StartSnapshot";
        let tags: Vec<Value> = tags
            .iter()
            .map(|(key, value)| json!({ "Key": key, "Value": value }))
            .collect();
        let body = json!({
            "VolumeSize": gib,
            "Description": description,
            "Tags": tags,
            "Timeout": PATIENCE,
            // A request that is made again makes no second snapshot.
            "ClientToken": format!("apppot-{:016x}{:016x}", random(), random()),
        });
        let answer = self.client.call(&Request {
            operation,
            method: "POST",
            path: String::from("/snapshots"),
            headers: vec![("content-type", String::from("application/json"))],
            query: String::new(),
            body: Body::Bytes(body.to_string().as_bytes()),
            signs_body: true,
        })?;
        let answer: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| self.client.malformed(operation, error.to_string()))?;
        let id = answer.get("SnapshotId").and_then(Value::as_str);
        // It becomes part of paths, and a line of a file.
        let is_id = |id: &&str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !id.is_empty() && id.len() <= 64 && id.chars().all(plain)
        };
        let id = id.filter(is_id);
        id.map(str::to_owned)
            .ok_or_else(|| self.client.malformed(operation, "it names no snapshot"))
    }

    /// Writes a block of [`BLOCK`] bytes. `index` counts such blocks. Writing one twice is harmless.
    ///
    /// # Errors
    /// The service cannot be reached, refuses, or has got other bytes.
    pub fn put(&self, snapshot: &str, index: u32, block: &[u8], checksum: &Checksum) -> Result<()> {
        let operation = "PutSnapshotBlock";
        let checksum = BASE64_STANDARD.encode(checksum);
        let answer = self.client.call(&Request {
            operation,
            method: "PUT",
            path: format!("/snapshots/{snapshot}/blocks/{index}"),
            headers: vec![
                ("content-type", String::from("application/octet-stream")),
                ("x-amz-data-length", block.len().to_string()),
                ("x-amz-checksum", checksum.clone()),
                ("x-amz-checksum-algorithm", String::from("SHA256")),
            ],
            query: String::new(),
            body: Body::Bytes(block),
            // So the interface wants it; the checksum is signed.
            signs_body: false,
        })?;
        match answer.headers.get("x-amz-checksum") {
            Some(got) if got.as_bytes() != checksum.as_bytes() => {
                Err(self.client.malformed(operation, "it has got other bytes"))
            }
            _ => Ok(()),
        }
    }

    /// Says that all blocks are written: how many, and the checksum of their checksums, in order.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn complete(&self, snapshot: &str, blocks: usize, checksum: &Checksum) -> Result<()> {
        self.client.call(&Request {
            operation: "CompleteSnapshot",
            method: "POST",
            path: format!("/snapshots/completion/{snapshot}"),
            headers: vec![
                ("x-amz-changedblockscount", blocks.to_string()),
                ("x-amz-checksum", BASE64_STANDARD.encode(checksum)),
                ("x-amz-checksum-algorithm", String::from("SHA256")),
                ("x-amz-checksum-aggregation-method", String::from("LINEAR")),
            ],
            query: String::new(),
            body: Body::Bytes(b""),
            signs_body: true,
        })?;
        Ok(())
    }
}
