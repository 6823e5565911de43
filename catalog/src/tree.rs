//! The tree that sorted entries make, as one list of nodes in the order of a walk: a folder's node is followed by all that is below it,
//! and knows where that ends. Which of several entries with one path is in the tree is decided here, and nowhere else.

use crate::entries::{Entries, Entry, common_prefix};
use crate::{Mtime, SkipReason};

/// The position of a node in the walk; the root is 0.
pub(crate) type NodeIndex = u32;

/// A file or folder. Its name is a part of an entry's path: its own, or for a folder that of anything below it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    entry: u32,
    /// The folder it is in; the root is in itself.
    pub(crate) parent: NodeIndex,
    /// The node after the last one below it.
    end: NodeIndex,
    name_start: u16,
    name_len: u8,
    pub(crate) is_dir: bool,
}

/// The tree, borrowing its names from the entries.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    entries: &'a Entries,
    nodes: Vec<Node>,
}

/// What a folder's inode says about what is in it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FolderFacts {
    /// The newest of the files directly in it; 1970 without any.
    pub(crate) mtime: Mtime,
    /// Folders directly in it.
    pub(crate) folders: u32,
}

impl<'a> Tree<'a> {
    /// Builds the tree; `skip` hears of each file that gives way to a folder or to a file of an earlier source.
    pub(crate) fn new(entries: &'a Entries, mut skip: impl FnMut(&Entry, SkipReason)) -> Self {
        let order = entries.sorted();
        let mut builder = Builder::new(entries.len());
        let mut rest = order.as_slice();
        while let [first, ..] = rest {
            let path = entries.path(entries.get(*first));
            let count = rest.iter().take_while(|other| entries.path(entries.get(**other)) == path).count();
            let (group, after) = rest.split_at(count);
            rest = after;
            let is_folder = entries.get(*first).is_dir;
            let has_below = after.first().is_some_and(|next| {
                let next = entries.path(entries.get(*next));
                next.starts_with(path) && next.get(path.len()) == Some(&b'/')
            });
            let winner = entries.get(*first);
            for other in group.iter().map(|index| entries.get(*index)).filter(|entry| !entry.is_dir) {
                if is_folder || has_below {
                    skip(other, SkipReason::FileAndFolder);
                } else if other.source != winner.source {
                    // The same key twice in one listing is a change during the listing; the newest is taken and nothing is missing.
                    skip(other, SkipReason::DuplicatePath);
                }
            }
            if is_folder {
                builder.add(*first, path, true);
            } else if !has_below {
                builder.add(*first, path, false);
            }
        }
        Self { entries, nodes: builder.finish() }
    }

    pub(crate) fn node(&self, index: NodeIndex) -> &Node {
        &self.nodes[index as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The entry of a file's node.
    pub(crate) fn entry(&self, node: &Node) -> &'a Entry {
        self.entries.get(node.entry)
    }

    pub(crate) fn entries(&self) -> &'a Entries {
        self.entries
    }

    /// A node's name; the root's is empty.
    pub(crate) fn name(&self, node: &Node) -> &'a [u8] {
        if node.name_len == 0 {
            return b""; // the root, which has no entry of its own
        }
        let start = usize::from(node.name_start);
        &self.entries.path(self.entries.get(node.entry))[start..start + usize::from(node.name_len)]
    }

    /// What is directly in a folder, names in byte order.
    pub(crate) fn children(&self, folder: NodeIndex) -> impl Iterator<Item = (NodeIndex, &Node)> {
        let end = self.node(folder).end;
        let mut next = folder + 1;
        std::iter::from_fn(move || {
            (next < end).then(|| {
                let (index, node) = (next, self.node(next));
                next = node.end;
                (index, node)
            })
        })
    }

    /// All folders, each before those in it; the root is the first.
    pub(crate) fn folders(&self) -> impl Iterator<Item = NodeIndex> {
        (0..self.nodes.len() as NodeIndex).filter(|index| self.node(*index).is_dir)
    }

    /// The entries of all files.
    pub(crate) fn files(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().filter(|node| !node.is_dir).map(|node| node.entry)
    }

    pub(crate) fn folder_facts(&self, folder: NodeIndex) -> FolderFacts {
        let mut newest: Option<Mtime> = None;
        let mut folders = 0;
        for (_, node) in self.children(folder) {
            if node.is_dir {
                folders += 1;
            } else {
                newest = newest.max(Some(self.entry(node).mtime));
            }
        }
        FolderFacts { mtime: newest.unwrap_or_default(), folders }
    }
}

/// Adds nodes in the order of a walk, with the folders above them.
struct Builder<'a> {
    nodes: Vec<Node>,
    /// The folders that are still open: node, and how long its path is.
    open: Vec<(NodeIndex, usize)>,
    last: &'a [u8],
}

impl<'a> Builder<'a> {
    fn new(entries: usize) -> Self {
        let mut nodes = Vec::with_capacity(entries + 1);
        nodes.push(Node { entry: 0, parent: 0, end: 0, name_start: 0, name_len: 0, is_dir: true });
        Self { nodes, open: vec![(0, 0)], last: b"" }
    }

    fn add(&mut self, entry: u32, path: &'a [u8], is_dir: bool) {
        if path.is_empty() {
            return; // the root is there already
        }
        let common = common_prefix(self.last, path);
        while self.open.last().is_some_and(|(_, len)| *len > 0 && (*len > common || path.get(*len) != Some(&b'/'))) {
            self.close();
        }
        let mut start = self.open.last().map_or(0, |(_, len)| if *len == 0 { 0 } else { len + 1 });
        while let Some(slash) = path[start..].iter().position(|byte| *byte == b'/') {
            self.push(entry, start, slash, true);
            start += slash + 1;
        }
        self.push(entry, start, path.len() - start, is_dir);
        self.last = path;
    }

    fn push(&mut self, entry: u32, name_start: usize, name_len: usize, is_dir: bool) {
        let index = self.nodes.len() as NodeIndex;
        let parent = self.open.last().map_or(0, |(node, _)| *node);
        // The writer has checked that paths and names fit.
        let (name_start, name_len) = (name_start as u16, name_len as u8);
        self.nodes.push(Node { entry, parent, end: index + 1, name_start, name_len, is_dir });
        if is_dir {
            self.open.push((index, usize::from(name_start) + usize::from(name_len)));
        }
    }

    fn close(&mut self) {
        if let Some((node, _)) = self.open.pop() {
            self.nodes[node as usize].end = self.nodes.len() as NodeIndex;
        }
    }

    fn finish(mut self) -> Vec<Node> {
        while !self.open.is_empty() {
            self.close();
        }
        self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::NewFile;
    use crate::{ObjectId, SourceIndex};

    fn build(list: &[(u16, &str, i64)]) -> (Vec<String>, Vec<String>) {
        let mut entries = Entries::default();
        for (source, path, seconds) in list {
            let source = SourceIndex(*source);
            if let Some(path) = path.strip_suffix('/') {
                entries.add_directory(source, path.as_bytes());
            } else {
                let mtime = Mtime { seconds: *seconds, nanos: 0 };
                let new = NewFile { id: ObjectId::from_bytes([0; 16]), size: 1, mtime, etag: "" };
                entries.add_file(source, path.as_bytes(), &new);
            }
        }
        let mut skipped = Vec::new();
        let tree = Tree::new(&entries, |entry, reason| {
            skipped.push(format!("{} {} {reason:?}", entry.source.0, String::from_utf8_lossy(entries.path(entry))));
        });
        let mut lines = Vec::new();
        for folder in tree.folders() {
            let facts = tree.folder_facts(folder);
            let name = |node| String::from_utf8_lossy(tree.name(node)).into_owned();
            let children: Vec<_> = tree
                .children(folder)
                .map(|(_, node)| {
                    assert_eq!(node.parent, folder);
                    name(node) + if node.is_dir { "/" } else { "" }
                })
                .collect();
            lines.push(format!("{}: {} @{}", name(tree.node(folder)), children.join(" "), facts.mtime.seconds));
        }
        (lines, skipped)
    }

    #[test]
    fn entries_in_any_order_make_the_same_tree() {
        let list = [(0, "b/x/1", 5), (0, "a", -3), (0, "b/y.z", 9), (0, "b/x/2", 7), (0, "b.c/q", 1), (0, "e/f/", 0)];
        let mut reversed = list;
        reversed.reverse();
        let (lines, skipped) = build(&list);
        assert_eq!(lines, [": a b/ b.c/ e/ @-3", "b: x/ y.z @9", "x: 1 2 @7", "b.c: q @1", "e: f/ @0", "f:  @0"]);
        assert!(skipped.is_empty());
        assert_eq!(build(&reversed).0, lines);
    }

    #[test]
    fn a_folder_wins_over_a_file_and_an_earlier_source_over_a_later() {
        let list = [(0, "a", 1), (1, "a/b", 2), (1, "c", 3), (0, "c", 4), (0, "d", 5), (1, "d/", 0), (0, "c", 9)];
        let (lines, skipped) = build(&list);
        assert_eq!(lines, [": a/ c d/ @9", "a: b @2", "d:  @0"]);
        assert_eq!(skipped, ["0 a FileAndFolder", "1 c DuplicatePath", "0 d FileAndFolder"]);
    }

    #[test]
    fn a_folder_that_only_skipped_files_imply_is_still_one_folder() {
        let (lines, skipped) = build(&[(0, "a/b", 1), (0, "a/b/c", 1), (0, "a", 1), (0, "a/b/c/", 0), (0, "ab", 1)]);
        assert_eq!(lines, [": a/ ab @1", "a: b/ @0", "b: c/ @0", "c:  @0"]);
        assert_eq!(skipped.len(), 3);
    }

    #[test]
    fn no_entries_are_an_empty_root() {
        assert_eq!(build(&[]).0, [":  @0"]);
        assert_eq!(build(&[(0, "/", 0)]).0, [":  @0"]);
    }
}
