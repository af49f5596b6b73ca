//! S3: objects of one bucket, and URLs with which those who have no key read and write them.

use std::fs::File;
use std::time::Duration;

use roxmltree::Document;

use crate::body::Body;
use crate::config::settings;
use crate::ec2::{child, text};
use crate::http::{Client, Request};
use crate::sign::query;
use crate::{Config, Error, Result, Service};

/// The most that is read at once, bytes.
pub const MOST_READ: u64 = 8 << 20;
/// The longest time for which a URL can be good.
pub const LONGEST_VALIDITY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The most pages of a list: ten million objects.
const PAGES: usize = 10_000;

/// A bucket.
#[derive(Debug)]
pub struct S3 {
    client: Client,
    /// What stands before every key in a path.
    root: String,
}

/// An object of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

impl S3 {
    /// A bucket of the configured cloud: a host of its own at Amazon, unless a dot in its name keeps
    /// certificates from being good for that; a path of the endpoint everywhere else.
    ///
    /// # Errors
    /// That cannot be a bucket's name, or the configured endpoint is no URL.
    pub fn new(config: &Config, bucket: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(plain) {
            return Err(settings(
                format!("'{bucket}' cannot be a bucket's name"),
                "names are 3 to 63 small letters, digits, dots and hyphens",
            ));
        }
        let (endpoint, root) = match config.own_endpoint(Service::S3) {
            None if !bucket.contains('.') => {
                let host = config.usual(Service::S3);
                (format!("https://{bucket}.{host}"), String::new())
            }
            _ => (config.endpoint(Service::S3), format!("/{bucket}")),
        };
        let client = Client::at(&endpoint, Service::S3, config)?;
        Ok(S3 { client, root })
    }

    /// The path of an object. Names are of characters that need no encoding.
    fn path(&self, key: &str) -> String {
        debug_assert!(is_plain(key), "{key}");
        format!("{}/{key}", self.root)
    }

    fn request<'a>(&self, operation: &'a str, method: &'static str, key: &str) -> Request<'a> {
        Request {
            operation,
            method,
            path: self.path(key),
            query: String::new(),
            headers: Vec::new(),
            body: Body::Bytes(b""),
            signs_body: true,
        }
    }

    /// Writes an object, whole or not at all.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let request = self.request("PutObject", "PUT", key);
        let body = Body::Bytes(bytes);
        self.client.call(&Request { body, ..request }).map(drop)
    }

    /// Writes an object of `len` bytes of a file, from `start`. `goes_on` is told of each piece (0 bytes: it is
    /// only looked at; one may be sent more than once), and may stop it.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses; the file cannot be read; it was stopped.
    pub fn put_part(
        &self,
        key: &str,
        file: &File,
        start: u64,
        len: u64,
        goes_on: &dyn Fn(usize) -> bool,
    ) -> Result<()> {
        let request = self.request("PutObject", "PUT", key);
        let body = Body::Part {
            file,
            start,
            len,
            goes_on,
        };
        self.client.call(&Request { body, ..request }).map(drop)
    }

    /// Reads up to [`MOST_READ`] bytes of an object, from `start`; `None` when there is no such object, or
    /// not so much of it.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn get(&self, key: &str, start: u64, most: u64) -> Result<Option<Vec<u8>>> {
        let end = start + most.clamp(1, MOST_READ) - 1;
        let request = Request {
            headers: vec![("range", format!("bytes={start}-{end}"))],
            ..self.request("GetObject", "GET", key)
        };
        match self.client.call(&request) {
            // Who knows no ranges answers with all of it.
            Ok(answer) if answer.headers.contains_key("content-range") || start == 0 => {
                let mut body = answer.body;
                body.truncate(usize::try_from(most.clamp(1, MOST_READ)).unwrap_or(usize::MAX));
                Ok(Some(body))
            }
            Ok(_) => Err(self.client.malformed("GetObject", "it is not the range")),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every object whose name begins so, by name.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let operation = "ListObjectsV2";
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES {
            let mut pairs = vec![("list-type", "2"), ("prefix", prefix)];
            pairs.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let answer = self.client.call(&Request {
                query: query(&pairs),
                path: match &self.root[..] {
                    "" => String::from("/"),
                    root => root.to_owned(),
                },
                ..self.request(operation, "GET", "")
            })?;
            token = self.page(operation, &answer.body, &mut all)?;
            if token.is_none() {
                return Ok(all);
            }
        }
        Err(self.client.malformed(operation, "its list has no end"))
    }

    /// Adds the objects of a page, and returns what the next one is asked for with.
    fn page(&self, operation: &str, body: &[u8], all: &mut Vec<Object>) -> Result<Option<String>> {
        let malformed = |reason: &str| self.client.malformed(operation, reason);
        let body = std::str::from_utf8(body).map_err(|error| malformed(&error.to_string()))?;
        let document = Document::parse(body).map_err(|error| malformed(&error.to_string()))?;
        let root = document.root_element();
        for item in root
            .children()
            .filter(|node| node.tag_name().name() == "Contents")
        {
            let key = text(item, "Key").filter(|key| is_plain(key));
            let size = child(item, "Size").and_then(|size| size.text()?.parse().ok());
            // Names that we would not give are none of our objects.
            if let (Some(key), Some(size)) = (key, size) {
                all.push(Object { key, size });
            }
        }
        Ok(text(root, "NextContinuationToken").filter(|token| !token.is_empty()))
    }

    /// Deletes an object. Harmless when there is none.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses.
    pub fn delete(&self, key: &str) -> Result<()> {
        match self
            .client
            .call(&self.request("DeleteObject", "DELETE", key))
        {
            Err(error) if !is_absent(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// A URL to read an object with, for that time, [`LONGEST_VALIDITY`] at most.
    #[must_use]
    pub fn url_to_get(&self, key: &str, valid: Duration) -> String {
        self.client.presigned("GET", &self.path(key), valid)
    }

    /// A URL to write an object with, for that time, [`LONGEST_VALIDITY`] at most.
    #[must_use]
    pub fn url_to_put(&self, key: &str, valid: Duration) -> String {
        self.client.presigned("PUT", &self.path(key), valid)
    }
}

/// Whether there is no such object, or no such range of it.
fn is_absent(error: &Error) -> bool {
    matches!(
        error.code(),
        Some("NoSuchKey" | "InvalidRange" | "HTTP 404" | "HTTP 416")
    )
}

/// Whether a key needs no encoding.
fn is_plain(key: &str) -> bool {
    key.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(endpoint: Option<&str>, name: &str) -> Result<S3> {
        let config = Config::load(&|variable: &str| {
            Some(match variable {
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => String::from("k"),
                "AWS_REGION" => String::from("eu-west-1"),
                "AWS_ENDPOINT_URL_S3" => endpoint?.to_owned(),
                _ => return None,
            })
        });
        S3::new(&config?, name)
    }

    #[test]
    fn buckets_are_hosts_at_amazon_and_paths_elsewhere() {
        for (endpoint, name, url) in [
            (None, "b-1", "https://b-1.s3.eu-west-1.amazonaws.com/a/b?"),
            (None, "b.1", "https://s3.eu-west-1.amazonaws.com/b.1/a/b?"),
            (
                Some("http://127.0.0.1:9000/"),
                "b-1",
                "http://127.0.0.1:9000/b-1/a/b?",
            ),
            (Some("https://s3.org/x"), "b-1", "https://s3.org/x/b-1/a/b?"),
        ] {
            let s3 = bucket(endpoint, name).unwrap();
            let found = s3.url_to_put("a/b", Duration::from_secs(60));
            assert!(found.starts_with(url), "{found}");
        }
        for name in ["", "ab", "Bucket", "a/b", "a b"] {
            assert!(bucket(None, name).is_err(), "{name}");
        }
    }

    #[test]
    fn pages_are_read_and_strange_names_passed_over() {
        let s3 = bucket(None, "b-1").unwrap();
        let page = b"<ListBucketResult xmlns='x'><Contents><Key>a/b</Key><Size>7</Size></Contents>\
            <Contents><Key>a b</Key><Size>1</Size></Contents><Contents><Key>c</Key><Size>x</Size></Contents>\
            <NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
        let mut all = Vec::new();
        let token = s3.page("ListObjectsV2", page, &mut all).unwrap();
        assert_eq!(token.as_deref(), Some("t"));
        let key = String::from("a/b");
        assert_eq!(all, [Object { key, size: 7 }]);
        assert!(s3.page("ListObjectsV2", b"<a>", &mut all).is_err());
    }
}
