//! Paths: where they lead in the tree.

use apppot_snapshot::entry::Meta;

use super::{Kind, Node, NodeId, Refusal, Tree, ROOT};

/// Longest path and name (PATH_MAX, NAME_MAX).
const LONGEST_PATH: usize = 4096;
const LONGEST_NAME: usize = 255;
/// Symbolic links on the way, as the kernel allows.
const MOST_LINKS: u32 = 40;

/// The names of a path that an archive gives.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    let refuse = |why: &str| Err(why.to_owned());
    if path.len() > LONGEST_PATH {
        return refuse("its path is too long");
    }
    if path.contains(&0) {
        return refuse("its path contains a zero byte");
    }
    // Some builders write the root itself as '/'.
    if path.starts_with(b"/") && path != b"/" {
        return refuse("its path is absolute");
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refuse("its path contains '..'"),
            name if name.len() > LONGEST_NAME => return refuse("its name is too long"),
            name => names.push(name),
        }
    }
    Ok(names)
}

/// What is to happen on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Directories that are missing are made, and all belong to the layer that is being merged.
    Made,
    /// Nothing changes.
    Followed,
}

impl Tree {
    /// The directory that `path` is in, and the last name; `None` for the root, and where the way leads
    /// to no directory.
    pub(super) fn parent<'a>(
        &mut self,
        path: &'a [u8],
        way: Way,
    ) -> Result<Option<(NodeId, &'a [u8])>, Refusal> {
        let mut names = names(path)?;
        let Some(last) = names.pop() else {
            return Ok(None);
        };
        let directory = self.descend(&names, way)?;
        Ok(directory.map(|directory| (directory, last)))
    }

    /// The directory at `path`, if it is there.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Option<NodeId>, Refusal> {
        self.descend(&names(path)?, Way::Followed)
    }

    /// Follows names from the root, and symbolic links as the kernel would in the image.
    fn descend(&mut self, names: &[&[u8]], way: Way) -> Result<Option<NodeId>, Refusal> {
        let mut waiting: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let (mut at, mut links) = (ROOT, 0);
        while let Some(name) = waiting.pop() {
            if matches!(&name[..], b"" | b".") {
                continue;
            }
            if name == b".." {
                at = self.above(at)?;
                continue;
            }
            let Some(id) = self.child(at, &name) else {
                if way == Way::Followed {
                    return Ok(None);
                }
                at = self.make_directory(at, &name)?;
                continue;
            };
            match &self.node(id).kind {
                Kind::Directory { .. } => {
                    if way == Way::Made {
                        self.enter(at, &name, id);
                    }
                    at = id;
                }
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MOST_LINKS || waiting.len() > LONGEST_PATH {
                        return Err(String::from("too many symbolic links are on its path"));
                    }
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    let names = target.split(|byte| *byte == b'/');
                    waiting.extend(names.rev().map(<[u8]>::to_vec));
                }
                _ => return Err(String::from("a file that is no directory is on its path")),
            }
        }
        Ok(Some(at))
    }

    fn above(&self, directory: NodeId) -> Result<NodeId, Refusal> {
        match &self.node(directory).kind {
            Kind::Directory { parent, .. } if directory != ROOT => Ok(*parent),
            _ => Err(String::from(
                "a symbolic link on its path leads out of the root",
            )),
        }
    }

    fn make_directory(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, Refusal> {
        let meta = Meta {
            mode: 0o755,
            mtime: self.node(parent).meta.mtime,
            ..Meta::default()
        };
        let kind = self.subdirectory(parent)?;
        Ok(self.add(parent, name, Node::new(kind, meta)))
    }
}
