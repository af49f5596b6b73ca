//! What has become of results.

use std::path::Path;

use apppot_snapshot::transfer::Unpacked;
use apppot_snapshot::Error;

use crate::outcome::printable;
use crate::units::Size;

/// How results were put back.
#[derive(Debug)]
pub(crate) struct Received {
    /// Why not all of them are in their places, and where the others are.
    pub(crate) failure: Option<String>,
    /// Whether there was only too little of them: another try would get no more.
    pub(crate) ended_early: bool,
}

impl Received {
    pub(super) fn new(root: &Path, done: Unpacked, result: Result<(), Error>) -> Self {
        let saved = format!(
            "{} files ({}) are in '{}'",
            done.entries,
            size(done.bytes),
            root.display()
        );
        let mut lines = Vec::new();
        let ended_early = done.trouble.is_none() && matches!(result, Err(Error::Truncated));
        if let Some(trouble) = &done.trouble {
            let at = printable(trouble.at.as_os_str().as_encoded_bytes());
            lines.push(format!(
                "{}: {saved}, '{at}' is not",
                trouble.error.in_full()
            ));
            lines.push(match &trouble.rest {
                Some((path, entries)) => format!(
                    "the other {entries} files are in '{}': once there is room, 'tar -xpf' puts them into the \
                     job directory",
                    path.display()
                ),
                None => String::from("the rest is lost"),
            });
            if trouble.lost {
                lines.push(format!("'{at}' is lost"));
            }
        }
        if let Err(error) = result {
            lines.push(match &error {
                Error::Truncated => format!("they ended early: {saved}, the rest is lost"),
                Error::Limit(what) => format!(
                    "there are {what} (--output-limit, --output-files): {saved}, the rest is lost"
                ),
                _ => format!("{}: {saved}, the rest is lost", error.in_full()),
            });
        }
        Received {
            ended_early,
            failure: (!lines.is_empty()).then(|| lines.join("; ")),
        }
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        _ => Size(bytes >> 20 << 20).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apppot_snapshot::transfer::Trouble;

    #[test]
    fn what_is_saved_and_where_the_rest_is() {
        let trouble = |rest| Unpacked {
            entries: 3,
            bytes: 4096,
            trouble: Some(Trouble {
                error: Error::Truncated,
                at: "d/x".into(),
                lost: false,
                rest,
            }),
        };
        let said = |done, result| {
            let received = Received::new(Path::new("/job"), done, result);
            received.failure.unwrap()
        };
        let text = said(trouble(Some(("/tmp/rest.tar".into(), 7))), Ok(()));
        for part in [
            "3 files (4096 bytes) are in '/job'",
            "'d/x' is not",
            "other 7",
            "/tmp/rest.tar",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(said(trouble(None), Ok(())).contains("the rest is lost"));
        assert!(said(Unpacked::default(), Err(Error::Truncated)).contains("ended early"));
        let none = Received::new(Path::new("/job"), Unpacked::default(), Ok(()));
        assert_eq!(none.failure, None);
    }
}
