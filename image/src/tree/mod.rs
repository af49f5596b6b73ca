//! The tree of files in memory: layers are merged here, as a kernel would resolve their paths with the
//! image's root as its root. There is no path that leads out of it.

mod node;
mod paths;

pub(crate) use node::{Kind, Node, NodeId, ROOT};
use paths::Way;

use std::collections::BTreeMap;

use apppot_snapshot::entry::Meta;

use crate::ext4::Extent;

/// Names of a directory.
pub(crate) type Children = BTreeMap<Box<[u8]>, Child>;

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    /// The file.
    pub(crate) id: NodeId,
    /// The last layer that has said something about the name.
    layer: u32,
}

/// Most directories above a directory.
const DEEPEST: u32 = 1000;

/// Why a member cannot be put into the tree.
pub(crate) type Refusal = String;

/// All files.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Option<Node>>,
    /// Number of the layer that is being merged.
    layer: u32,
    /// Contents that nothing leads to any more.
    pub(crate) garbage: Vec<Extent>,
}

impl Tree {
    /// An empty root directory.
    pub(crate) fn new() -> Self {
        let meta = Meta {
            mode: 0o755,
            ..Meta::default()
        };
        let mut root = Node::new(Kind::directory(ROOT, 0), meta);
        root.links = 1;
        Tree {
            nodes: vec![Some(root)],
            layer: 0,
            garbage: Vec::new(),
        }
    }

    /// What follows belongs to another layer, above all others.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// A file that is in the tree.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        match &self.nodes[id] {
            Some(node) => node,
            None => unreachable!("names lead to files that exist"),
        }
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match &mut self.nodes[id] {
            Some(node) => node,
            None => unreachable!("names lead to files that exist"),
        }
    }

    /// Files in all.
    pub(crate) fn len(&self) -> usize {
        self.nodes.iter().flatten().count()
    }

    fn children(&self, id: NodeId) -> Option<&Children> {
        match &self.node(id).kind {
            Kind::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        Some(self.children(directory)?.get(name)?.id)
    }

    fn add(&mut self, directory: NodeId, name: &[u8], mut node: Node) -> NodeId {
        node.links = 1;
        let id = self.nodes.len();
        self.nodes.push(Some(node));
        self.enter(directory, name, id);
        id
    }

    /// Lets a name stand for a file, in the layer that is being merged.
    fn enter(&mut self, directory: NodeId, name: &[u8], id: NodeId) {
        let layer = self.layer;
        if let Kind::Directory { children, .. } = &mut self.node_mut(directory).kind {
            children.insert(name.into(), Child { id, layer });
        }
    }

    /// Puts a file of any kind at `path`, in place of what is there; a directory joins one that is there.
    ///
    /// # Errors
    /// The path leads nowhere or out of the tree.
    pub(crate) fn put(&mut self, path: &[u8], kind: Kind, meta: Meta) -> Result<(), Refusal> {
        if let Kind::Character(major, minor) | Kind::Block(major, minor) = kind {
            // As much as ext4, and Linux's dev_t, has room for.
            if major > 0xfff || minor > 0xf_ffff {
                let numbers = format!("{major}, {minor}");
                return Err(format!("has device numbers that Linux has not: {numbers}"));
            }
        }
        let Some((directory, name)) = self.parent(path, Way::Made)? else {
            return self.put_root(kind, meta);
        };
        match (self.child(directory, name), &kind) {
            (Some(id), Kind::Directory { .. }) if self.children(id).is_some() => {
                self.node_mut(id).meta = meta;
                self.enter(directory, name, id);
                return Ok(());
            }
            (Some(_), _) => self.remove(directory, name),
            (None, _) => {}
        }
        let kind = match kind {
            Kind::Directory { .. } => self.subdirectory(directory)?,
            kind => kind,
        };
        self.add(directory, name, Node::new(kind, meta));
        Ok(())
    }

    /// What a new directory in `parent` is.
    fn subdirectory(&self, parent: NodeId) -> Result<Kind, Refusal> {
        match &self.node(parent).kind {
            Kind::Directory { depth, .. } if *depth < DEEPEST => {
                Ok(Kind::directory(parent, depth + 1))
            }
            _ => Err(format!("directories are nested deeper than {DEEPEST}")),
        }
    }

    fn put_root(&mut self, kind: Kind, meta: Meta) -> Result<(), Refusal> {
        if !matches!(kind, Kind::Directory { .. }) {
            return Err(String::from("the root can only be a directory"));
        }
        self.node_mut(ROOT).meta = meta;
        Ok(())
    }

    /// Gives the file at `target` another name.
    ///
    /// # Errors
    /// One of the paths leads nowhere or out of the tree, or the target is a directory.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Refusal> {
        let missing = || {
            format!(
                "is a hard link to '{}', which is not in the archive",
                crate::error::shown(target)
            )
        };
        let (directory, name) = self.parent(target, Way::Followed)?.ok_or_else(missing)?;
        let id = self.child(directory, name).ok_or_else(missing)?;
        if self.children(id).is_some() {
            return Err(String::from("is a hard link to a directory"));
        }
        let Some((directory, name)) = self.parent(path, Way::Made)? else {
            return Err(String::from("the root can only be a directory"));
        };
        if self.child(directory, name) == Some(id) {
            return Ok(());
        }
        // The new name may stand for a directory that the target is in: its content must stay.
        self.node_mut(id).links += 1;
        if self.child(directory, name).is_some() {
            self.remove(directory, name);
        }
        if self.node(id).links > 65000 {
            return Err(String::from("has more than 65000 hard links"));
        }
        self.enter(directory, name, id);
        Ok(())
    }

    /// The file at `path`, if there is one; a symbolic link stands for itself.
    ///
    /// # Errors
    /// The path leads out of the tree.
    pub(crate) fn look_up(&mut self, path: &[u8]) -> Result<Option<&Node>, Refusal> {
        let found = match self.parent(path, Way::Followed)? {
            Some((directory, name)) => self.child(directory, name),
            None => None,
        };
        Ok(found.map(|id| self.node(id)))
    }

    /// The names in the directory at `path`; none when there is none.
    ///
    /// # Errors
    /// The path leads out of the tree.
    pub(crate) fn names(&mut self, path: &[u8]) -> Result<Vec<Box<[u8]>>, Refusal> {
        let directory = self.directory(path)?;
        let children = directory.and_then(|id| self.children(id));
        Ok(children.map_or_else(Vec::new, |children| children.keys().cloned().collect()))
    }

    /// Hides what the layers below have at `path`, and of a directory all that is below it.
    ///
    /// # Errors
    /// The path leads nowhere or out of the tree.
    pub(crate) fn white_out(&mut self, path: &[u8]) -> Result<(), Refusal> {
        if let Some((directory, name)) = self.parent(path, Way::Followed)? {
            self.hide(directory, name);
        }
        Ok(())
    }

    /// Hides everything that the layers below have in the directory at `path`.
    ///
    /// # Errors
    /// The path leads nowhere or out of the tree.
    pub(crate) fn make_opaque(&mut self, path: &[u8]) -> Result<(), Refusal> {
        if let Some(directory) = self.directory(path)? {
            self.hide_children(directory);
        }
        Ok(())
    }

    fn hide_children(&mut self, directory: NodeId) {
        let names: Vec<Box<[u8]>> = match self.children(directory) {
            Some(children) => children.keys().cloned().collect(),
            None => return,
        };
        for name in names {
            self.hide(directory, &name);
        }
    }

    /// What the same layer has put there stays, in whatever order it comes.
    fn hide(&mut self, directory: NodeId, name: &[u8]) {
        let children = self.children(directory);
        let Some(child) = children.and_then(|children| children.get(name)).copied() else {
            return;
        };
        match child.layer < self.layer {
            true => self.remove(directory, name),
            false => self.hide_children(child.id),
        }
    }

    /// Takes a name away, and with it whatever nothing else leads to.
    fn remove(&mut self, directory: NodeId, name: &[u8]) {
        let Kind::Directory { children, .. } = &mut self.node_mut(directory).kind else {
            return;
        };
        let mut waiting: Vec<NodeId> = children
            .remove(name)
            .map(|child| child.id)
            .into_iter()
            .collect();
        while let Some(id) = waiting.pop() {
            let node = self.node_mut(id);
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            match self.nodes[id].take().map(|node| node.kind) {
                Some(Kind::Directory { children, .. }) => {
                    waiting.extend(children.into_values().map(|child| child.id))
                }
                Some(Kind::File { extents, .. }) => self.garbage.extend(extents),
                _ => {}
            }
        }
    }
}
