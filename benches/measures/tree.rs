//! A machine's processes and the memory that they take.

use std::collections::HashMap;
use std::path::PathBuf;

/// Which processes there are, by parent.
pub(super) struct Tree {
    children: HashMap<u32, Vec<u32>>,
}

impl Tree {
    /// As it is now.
    pub(super) fn now() -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for entry in processes {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if let Some(parent) = parent(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        Tree { children }
    }

    /// `root` and all that come from it.
    pub(super) fn below(&self, root: u32) -> Vec<u32> {
        let mut all = vec![root];
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            all.extend(self.children.get(pid).into_iter().flatten());
            next += 1;
        }
        all
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses and may hold anything.
    stat.rsplit(')')
        .next()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Sizes in MB.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    /// Resident: what is shared counts everywhere.
    pub(super) resident: f64,
    /// Proportional: what is shared counts once in all.
    pub(super) proportional: f64,
}

/// The memory of a process; nothing when it is gone or not ours to look at.
pub(super) fn size(pid: u32) -> Size {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0 / 1e6
    };
    Size {
        resident: field("Rss:"),
        proportional: field("Pss:"),
    }
}

/// The memory of several.
pub(super) fn sum(pids: &[u32]) -> Size {
    pids.iter()
        .map(|&pid| size(pid))
        .fold(Size::default(), |sum, it| Size {
            resident: sum.resident + it.resident,
            proportional: sum.proportional + it.proportional,
        })
}
