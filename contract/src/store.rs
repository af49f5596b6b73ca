//! An object store between launcher and machine, for clouds: no stream reaches the machine, so what the
//! link carries elsewhere is in objects that presigned URLs name.
//!
//! A *segmented stream* is a sequence of bytes in consecutive objects, its segments. Segment *k* holds at
//! most [`segment_size`]`(k)` bytes, and all but the last are full. The last may be written again and again,
//! each time longer: whoever reads takes what is there.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::token::Error;

/// What the first segment holds, bytes; each further one holds twice as much, up to [`LARGEST_SEGMENT`].
pub const FIRST_SEGMENT: u64 = 1 << 20;
/// The most that a segment holds, bytes: less than what S3 takes in one request (5 GiB).
pub const LARGEST_SEGMENT: u64 = 4 << 30;
/// Segments that are usual for streams whose length nobody knows: 20 GiB.
pub const SEGMENTS: usize = 16;
/// The most segments that a stream has.
pub const MAX_SEGMENTS: usize = 64;
/// The longest URL, bytes.
pub const MAX_URL: usize = 8 << 10;
/// The most that is read of the object `control`, bytes.
pub const MAX_CONTROL: usize = 64 << 10;
/// How often output that is new is written to its object, and `control` is looked at.
pub const REFRESH: Duration = Duration::from_secs(3);
/// What passes between the end of a job that reached its deadline (with its grace) and the machine's end,
/// at most: results, output and report are stored by then, or lost. URLs are valid for as long.
pub const SAVING: Duration = Duration::from_secs(15 * 60);

/// Bytes that segment `index` (from 0) of a stream holds.
#[must_use]
pub fn segment_size(index: usize) -> u64 {
    u32::try_from(index)
        .ok()
        .and_then(|index| FIRST_SEGMENT.checked_shl(index))
        // A shift loses bits without a word.
        .filter(|&size| size >= FIRST_SEGMENT)
        .map_or(LARGEST_SEGMENT, |size| size.min(LARGEST_SEGMENT))
}

/// Segments that a stream of so many bytes has; an empty stream has one, which is empty.
#[must_use]
pub fn segments_of(length: u64) -> usize {
    let (mut left, mut index) = (length, 0);
    while left > segment_size(index) {
        left -= segment_size(index);
        index += 1;
    }
    index + 1
}

/// A presigned URL. Whoever has it may use the object, so neither `Debug` nor `Display` shows the query,
/// which holds the signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// # Errors
    /// It is no `http` or `https` URL without a name, password and fragment, or longer than [`MAX_URL`].
    pub fn new(text: &str) -> Result<Self, Error> {
        let rest = text.strip_prefix("https://");
        let rest = rest.or_else(|| text.strip_prefix("http://"));
        let authority = rest.and_then(|rest| rest.split(['/', '?']).next());
        let has_host = authority.is_some_and(|name| !name.is_empty() && !name.contains('@'));
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if !has_host || !text.bytes().all(is_plain) {
            let what = "is no URL http://HOST/… or https://HOST/…, without a name and password";
            return Err(Error::new(shown(text).as_bytes(), what));
        }
        if text.len() > MAX_URL {
            let what = format!(
                "is too long a URL: {} bytes, {MAX_URL} is the most",
                text.len()
            );
            return Err(Error::new(shown(text).as_bytes(), &what));
        }
        Ok(Url(text.to_owned()))
    }

    /// The whole of it, signature included.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

/// What may be shown of a URL.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(shown(&self.0))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

/// `apppot.store`, repeated: the objects of a machine. The lists are segmented streams, in order; an empty
/// one says that there is no such stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    /// `files`: the stream of the job's files, compressed with zstd; exactly the segments that there are.
    pub files: Vec<Url>,
    /// `stdin`: standard input; exactly the segments that there are.
    pub stdin: Vec<Url>,
    /// `stdout`: standard output is written to these.
    pub stdout: Vec<Url>,
    /// `stderr`: standard error is written to these.
    pub stderr: Vec<Url>,
    /// `results`: what the job changed is written to these, compressed with zstd.
    pub results: Vec<Url>,
    /// `report`: the report is written to this, when everything else is in its place.
    pub report: Option<Url>,
    /// `control`: signals for the job, each the decimal number of one on a line of its own. It may not exist
    /// yet, and grows.
    pub control: Option<Url>,
}

impl Store {
    /// Whether there are no objects at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Store::default()
    }

    /// Every object, with the name of what it belongs to, in order.
    pub(crate) fn objects(&self) -> impl Iterator<Item = (&'static str, &Url)> {
        let streams = [
            ("files", &self.files),
            ("stdin", &self.stdin),
            ("stdout", &self.stdout),
            ("stderr", &self.stderr),
            ("results", &self.results),
        ];
        let single = [("report", &self.report), ("control", &self.control)];
        let streams = streams.into_iter();
        let streams = streams.flat_map(|(name, urls)| urls.iter().map(move |url| (name, url)));
        streams.chain(
            single
                .into_iter()
                .filter_map(|(name, url)| Some((name, url.as_ref()?))),
        )
    }

    /// Adds an object.
    ///
    /// # Errors
    /// What is wrong with the name, or with one more of it.
    pub(crate) fn add(&mut self, name: &[u8], url: Url) -> Result<(), &'static str> {
        let stream = match name {
            b"files" => &mut self.files,
            b"stdin" => &mut self.stdin,
            b"stdout" => &mut self.stdout,
            b"stderr" => &mut self.stderr,
            b"results" => &mut self.results,
            b"report" | b"control" => {
                let single = match name {
                    b"report" => &mut self.report,
                    _ => &mut self.control,
                };
                return match single.replace(url) {
                    None => Ok(()),
                    Some(_) => Err("repeats an object that there is one of"),
                };
            }
            _ => return Err("names an unknown object"),
        };
        if stream.len() == MAX_SEGMENTS {
            return Err("is one segment too many");
        }
        stream.push(url);
        Ok(())
    }
}

/// Where the document is that was too long for its carrier: the document in its place holds this only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// `apppot.document`: where the document is.
    pub url: Url,
    /// `apppot.deadline`, as in the document there: the machine ends, also when that cannot be fetched.
    pub deadline: SystemTime,
    /// `apppot.grace`, as in the document there.
    pub grace: Duration,
    /// `apppot.store=report,…`, as in the document there: why it cannot be fetched is reported.
    pub report: Option<Url>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_double_up_to_the_largest() {
        assert_eq!(segment_size(0), 1 << 20);
        assert_eq!(segment_size(1), 2 << 20);
        assert_eq!(segment_size(11), 2 << 30);
        for index in [12, 13, 43, 44, 63, 64, 65, usize::MAX] {
            assert_eq!(segment_size(index), 4 << 30, "{index}");
        }
    }

    #[test]
    fn a_stream_has_the_segments_that_it_needs() {
        let mib = |count: u64| count << 20;
        for (length, segments) in [
            (0, 1),
            (1, 1),
            (mib(1), 1),
            (mib(1) + 1, 2),
            (mib(3), 2),
            (mib(3) + 1, 3),
        ] {
            assert_eq!(segments_of(length), segments, "{length}");
        }
        let capacity: u64 = (0..SEGMENTS).map(segment_size).sum();
        assert_eq!(segments_of(capacity), SEGMENTS);
        assert_eq!(segments_of(capacity + 1), SEGMENTS + 1);
        assert_eq!(capacity >> 20, (20 << 10) - 1);
    }

    #[test]
    fn a_url_is_one_and_shows_no_signature() {
        let url = Url::new("https://b.s3.org/o?X-Amz-Signature=hidden").unwrap();
        assert_eq!(url.to_string(), "https://b.s3.org/o");
        assert_eq!(format!("{url:?}"), "Url(https://b.s3.org/o)");
        assert!(url.secret().ends_with("hidden"));
        for wrong in [
            "",
            "b.s3.org/o?hidden",
            "ftp://b/o?hidden",
            "http://?hidden",
            "https:///o?hidden",
            "http://u:p@b/o?hidden",
            "http://b/o?hidden#x",
            "http://b/o ?hidden",
            "http://b/\u{f6}?hidden",
        ] {
            let error = Url::new(wrong).unwrap_err().to_string();
            assert!(
                error.contains("is no URL") && !error.contains("hidden"),
                "{error}"
            );
        }
        let long = format!("http://b/{}", "x".repeat(MAX_URL));
        assert!(Url::new(&long)
            .unwrap_err()
            .to_string()
            .contains("too long"));
    }
}
