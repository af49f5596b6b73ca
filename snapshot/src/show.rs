//! Changes for people: a sign and a path, a line each.

use std::fmt;

use crate::diff::{Action, Change};
use crate::entry::{shown, Kind};

/// A change as a line: `+` new, `*` another content or kind, `~` other metadata, `-` gone.
pub struct Line<'a>(pub &'a Change);

/// A recorded path. Names may hold control characters, which a terminal would obey.
pub struct Name<'a>(pub &'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = shown(self.0);
        let path = path.to_string_lossy();
        let path = path.escape_debug().collect::<String>().replace("\\'", "'");
        f.write_str(&path.replace("\\\"", "\""))
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", sign(self.0), Name(&self.0.path))?;
        match &self.0.action {
            Action::Put(entry) => match &entry.kind {
                Kind::File(file) => write!(f, " ({} bytes)", file.size),
                Kind::Symlink(to) => write!(f, " -> {}", to.escape_ascii()),
                Kind::Link(to) => write!(f, " = /{}", to.escape_ascii()),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The sign of a change.
#[must_use]
pub fn sign(change: &Change) -> char {
    match (&change.action, change.prior) {
        (Action::Put(_), None) => '+',
        (Action::Put(_), Some(_)) => '*',
        (Action::Meta(_), _) => '~',
        (Action::Delete, _) => '-',
        (Action::Witness, _) => '=',
    }
}
