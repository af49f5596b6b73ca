//! What changed between a base and a tree.

use crate::base::Base;
use crate::codec::{put_bytes, put_number};
use crate::entry::{is_within, order, Content, Entry, Kind, Meta};
use crate::rules::{Rules, Verdict};
use crate::tree::Listing;

/// How a file looked in the base, as far as one system call tells: enough to notice another base.
pub type Prior = [u8; 16];

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: Vec<u8>,
    /// How it looked in the base, if it was there.
    pub prior: Option<Prior>,
    /// What happened to it.
    pub action: Action,
}

/// What happened to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is new, or its content or kind is.
    Put(Entry),
    /// Its metadata are new, its content and kind are not.
    Meta(Entry),
    /// It is gone, with all that was below it.
    Delete,
    /// Nothing: it tells one base from another.
    Witness,
}

/// Number of files that tell one base from another, beside those that changed.
const WITNESSES: usize = 64;

/// Compares a base with a tree that was recorded under `rules`. Changes come in the tree's order.
#[must_use]
pub fn compare(base: &Base, listing: &Listing, rules: &Rules) -> Vec<Change> {
    let mut comparison = Comparison {
        base,
        covered: &listing.covered,
        rules,
        gone: None,
        changes: Vec::new(),
        same: Vec::new(),
    };
    comparison.run(listing);
    let Comparison { changes, same, .. } = comparison;
    let changes = with_links(base, listing, changes);
    with_witnesses(base, changes, &same)
}

struct Comparison<'a> {
    base: &'a Base,
    covered: &'a [Vec<u8>],
    rules: &'a Rules,
    /// What was below this path in the base is gone with it.
    gone: Option<&'a [u8]>,
    changes: Vec<Change>,
    /// Files that did not change, by their place in the base.
    same: Vec<usize>,
}

impl<'a> Comparison<'a> {
    fn run(&mut self, listing: &Listing) {
        let mut old = self.base.entries.iter().enumerate().peekable();
        for found in &listing.found {
            let new = &found.entry;
            while let Some((_, entry)) =
                old.next_if(|(_, entry)| order(&entry.path, &new.path).is_lt())
            {
                self.vanished(entry);
            }
            match old.next_if(|(_, entry)| entry.path == new.path) {
                Some((index, entry)) => self.both(index, entry, new),
                None => self.push(&new.path, None, Action::Put(new.clone())),
            }
        }
        for (_, entry) in old {
            self.vanished(entry);
        }
    }

    fn vanished(&mut self, entry: &'a Entry) {
        let path = &entry.path;
        let with_parent = self.gone.is_some_and(|gone| is_within(path, gone));
        if with_parent || self.covered.iter().any(|covered| is_within(path, covered)) {
            return;
        }
        if self.is_excluded(entry) {
            return;
        }
        self.gone = Some(path);
        self.push(path, Some(entry), Action::Delete);
    }

    fn both(&mut self, index: usize, old: &'a Entry, new: &Entry) {
        if old == new {
            if matches!(old.kind, Kind::File(_)) {
                self.same.push(index);
            }
        } else if old.kind == new.kind {
            self.push(&new.path, Some(old), Action::Meta(new.clone()));
        } else {
            if old.is_directory() {
                self.gone = Some(&old.path);
            }
            self.push(&new.path, Some(old), Action::Put(new.clone()));
        }
    }

    /// Only the caller's own patterns matter: the base was recorded under the default ones.
    fn is_excluded(&self, entry: &Entry) -> bool {
        self.rules.is_extended()
            && self.rules.judge_whole(&entry.path, entry.is_directory()) != Verdict::Keep
    }

    fn push(&mut self, path: &[u8], old: Option<&Entry>, action: Action) {
        self.changes.push(Change {
            path: path.to_owned(),
            prior: old.and_then(|old| prior_of(self.base, old)),
            action,
        });
    }
}

/// A file that is written again gets a new inode, so all its names have to be made again too.
fn with_links(base: &Base, listing: &Listing, changes: Vec<Change>) -> Vec<Change> {
    let is_made = |action: &Action| matches!(action, Action::Put(_) | Action::Meta(_));
    let changed = |path: &[u8]| {
        changes
            .binary_search_by(|change| order(&change.path, path))
            .is_ok_and(|at| is_made(&changes[at].action))
    };
    let mut links: Vec<Change> = Vec::new();
    for found in &listing.found {
        let entry = &found.entry;
        let Kind::Link(leader) = &entry.kind else {
            continue;
        };
        if changed(leader) && !changed(&entry.path) {
            links.push(Change {
                path: entry.path.clone(),
                prior: base.get(&entry.path).and_then(|old| prior_of(base, old)),
                action: Action::Put(entry.clone()),
            });
        }
    }
    merged(changes, links)
}

/// Files spread over the whole base that did not change.
fn with_witnesses(base: &Base, changes: Vec<Change>, same: &[usize]) -> Vec<Change> {
    let step = same.len().div_ceil(WITNESSES).max(1);
    let witnesses = same.iter().step_by(step).map(|&index| {
        let entry = &base.entries[index];
        Change {
            path: entry.path.clone(),
            prior: prior_of(base, entry),
            action: Action::Witness,
        }
    });
    // A file may have to be made again as another name of one that changed.
    let taken = |path: &[u8]| {
        changes
            .binary_search_by(|change| order(&change.path, path))
            .is_ok()
    };
    let witnesses = witnesses.filter(|witness| !taken(&witness.path)).collect();
    merged(changes, witnesses)
}

fn merged(mut changes: Vec<Change>, more: Vec<Change>) -> Vec<Change> {
    changes.extend(more);
    changes.sort_by(|a, b| order(&a.path, &b.path));
    changes
}

fn prior_of(base: &Base, entry: &Entry) -> Option<Prior> {
    match &entry.kind {
        Kind::Link(leader) => {
            let leader = base.get(leader)?;
            Some(prior(&leader.kind, &leader.meta))
        }
        kind => Some(prior(kind, &entry.meta)),
    }
}

/// What lstat(2) and readlink(2) tell. The times of directories are left out: making the mount points
/// of a job changes them.
pub(crate) fn prior(kind: &Kind, meta: &Meta) -> Prior {
    let mut bytes = Vec::new();
    let mut device = |tag: u8, major: u32, minor: u32| {
        bytes.push(tag);
        put_number(&mut bytes, major.into());
        put_number(&mut bytes, minor.into());
    };
    match kind {
        Kind::Directory => bytes.push(b'd'),
        Kind::File(Content { size, .. }) => {
            bytes.push(b'f');
            put_number(&mut bytes, *size);
        }
        Kind::Symlink(target) => {
            bytes.push(b'l');
            put_bytes(&mut bytes, target);
        }
        Kind::Fifo => bytes.push(b'p'),
        Kind::Character(major, minor) => device(b'c', *major, *minor),
        Kind::Block(major, minor) => device(b'b', *major, *minor),
        Kind::Link(_) => bytes.push(b'h'),
    }
    for number in [meta.mode.into(), meta.uid, meta.gid] {
        put_number(&mut bytes, number.into());
    }
    if *kind != Kind::Directory {
        bytes.extend_from_slice(&meta.mtime.seconds.to_le_bytes());
        put_number(&mut bytes, meta.mtime.nanoseconds.into());
    }
    let mut prior = [0; 16];
    prior.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    prior
}
