//! Errors as the user meets them: `error:`, `caused by:`, `hint:`.

use std::fmt;
use std::io::{IsTerminal, Write};

use serde_json::json;

#[derive(Debug)]
struct Hinted {
    message: String,
    hint: String,
}

/// An error with advice.
pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hinted {
        message: message.into(),
        hint: hint.into(),
    })
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// The advice that an error or one of its causes carries.
pub(crate) fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return Some(hinted.hint.clone());
        }
        if let Some(error) = cause.downcast_ref::<apppot_image::Error>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<apppot_cloud::Error>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<apppot_snapshot::Error>() {
            return error.hint().map(str::to_owned);
        }
        cause.downcast_ref::<apppot_backends::Error>()?.hint()
    })
}

/// Prints a line to standard error. A reader that is gone is no reason to end.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints to standard output; as with [`say`], it does not matter whether anybody reads it.
pub(crate) fn print_out(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints an error to standard error.
pub(crate) fn print(error: &anyhow::Error, as_json: bool) {
    let hint = hint(error);
    if as_json {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        let value = json!({ "error": error.to_string(), "caused-by": causes, "hint": hint });
        say(&value.to_string());
        return;
    }
    let (red, plain) = match std::io::stderr().is_terminal() {
        true => ("\x1b[1;31m", "\x1b[0m"),
        false => ("", ""),
    };
    say(&format!(
        "{red}error:{plain} {}",
        printable(&error.to_string())
    ));
    for cause in error.chain().skip(1) {
        say(&format!("caused by: {}", printable(&cause.to_string())));
    }
    if let Some(hint) = hint {
        say(&format!("hint: {}", printable(&hint)));
    }
}

/// Names of files may come from anywhere, and hold what a terminal would obey.
fn printable(text: &str) -> String {
    let is_safe = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars()
        .map(|c| match is_safe(c) {
            true => c.to_string(),
            false => c.escape_default().to_string(),
        })
        .collect()
}

/// Prints a warning to standard error.
pub(crate) fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn terminals_are_not_commanded() {
        assert_eq!(
            printable("a\u{1b}[2J\u{9b}b\n\tü"),
            "a\\u{1b}[2J\\u{9b}b\n\tü"
        );
    }
}
