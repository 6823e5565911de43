//! Trees of catalogs for kernels that can't mount them: the root's folder `tree-<slot>` shows what the catalog's image describes. Nothing is
//! kept between requests: a node's id is made of the slot, which the mounter gave, and the number of the inode in the image. What a file holds is
//! read as any object's; permissions are the kernel's to check.

mod node_id;
mod xattr;

use std::sync::Arc;

use forebay_catalog::{Damaged, MAX_NAME_BYTES, TreeImage, TreeNode};
use nix::errno::Errno;

use crate::abi::{Attr, AttrOut, EntryOut, InHeader, OpenOut, ROOT_ID, StatfsOut, fopen, op};
use crate::listing::Listing;
use crate::objects::{Outcome, TIMEOUT_SECONDS, put};
use crate::registry::{Found, MountedCatalog, Registry};
use node_id::NodeId;
pub use node_id::folder_name;
pub use xattr::none as no_xattrs;

/// Bytes in the units that STATFS counts in.
const STATFS_BLOCK: u32 = 4096;

/// A catalog's tree.
#[derive(Debug)]
pub struct Tree {
    slot: u16,
    image: TreeImage,
    /// Of all its nodes: tells them from those of another tree that had the slot before.
    generation: u64,
    files: u64,
    bytes: u64,
}

impl Tree {
    /// The tree that `image` of the catalog with this id describes, to be shown in the folder of `slot`. `files` and `bytes` is what STATFS
    /// tells of it.
    pub fn new(slot: u16, catalog_id: &str, image: TreeImage, files: u64, bytes: u64) -> Self {
        // The first half of the id, which is a hash in hexadecimal.
        let generation = catalog_id.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        Self { slot, image, generation: generation.unwrap_or_default(), files, bytes }
    }

    /// Its slot.
    pub fn slot(&self) -> u16 {
        self.slot
    }
}

/// Whether a node id is of a tree.
pub fn owns(node_id: u64) -> bool {
    NodeId::of(node_id).is_some()
}

/// Answers a request about a tree's names and attributes. `None`: it is not about a tree, or about a file's content.
pub fn handle(
    registry: &Registry,
    header: &InHeader,
    body: &[u8],
    answer: &mut [u8],
) -> Option<Result<Outcome, Errno>> {
    if header.nodeid == ROOT_ID {
        let slot = node_id::slot_of_folder(name_in(body)).filter(|_| header.opcode == op::LOOKUP)?;
        return Some(Place::root(registry, slot).map(|root| put(&root.tree_entry(), answer)));
    }
    let id = NodeId::of(header.nodeid)?;
    let place = || Place::find(registry, id);
    Some(match header.opcode {
        op::LOOKUP => place().and_then(|folder| folder.lookup(name_in(body))).map(|entry| put(&entry, answer)),
        op::GETATTR => place().map(|place| {
            let attr = place.attributes();
            put(&AttrOut { attr_valid: TIMEOUT_SECONDS, attr, ..AttrOut::default() }, answer)
        }),
        op::OPEN => match place() {
            Ok(file) if file.has_content() => return None,
            other => other.and_then(|place| place.open_empty()).map(|opened| put(&opened, answer)),
        },
        op::READDIR | op::READDIRPLUS => Listing::new(body, header.opcode == op::READDIRPLUS, answer)
            .and_then(|listing| place()?.list(listing))
            .map(Outcome::Reply),
        op::GETXATTR => place().and_then(|place| xattr::get(&place, body, answer)),
        op::LISTXATTR => place().and_then(|place| xattr::list(&place, body, answer)),
        op::STATFS => place().map(|place| put(&place.tree.statistics(), answer)),
        _ => return None,
    })
}

/// The object that holds the content of the file with this node id.
pub fn find(registry: &Registry, node_id: u64) -> Result<Found, Errno> {
    let place = Place::find(registry, NodeId::of(node_id).ok_or(Errno::ESTALE)?)?;
    if place.node.is_dir() {
        return Err(Errno::EISDIR);
    }
    let object = place.tree.image.object(&place.node).map_err(|damaged| place.failed(damaged))?;
    // Nobody reads what is empty: the kernel knows the size.
    let id = object.ok_or(Errno::EINVAL)?;
    Ok(Found { id, size: place.node.size, catalog: place.catalog })
}

/// The name in a LOOKUP.
fn name_in(body: &[u8]) -> &[u8] {
    body.strip_suffix(&[0]).unwrap_or(body)
}

/// A node of a tree that is there.
struct Place {
    catalog: Arc<MountedCatalog>,
    tree: Arc<Tree>,
    node: TreeNode,
}

impl Place {
    /// The node was there when the kernel looked it up, so if the tree is not, it has been unmounted since.
    fn find(registry: &Registry, id: NodeId) -> Result<Self, Errno> {
        let (catalog, tree) = registry.find_tree(id.slot).ok_or(Errno::ESTALE)?;
        Self::at(catalog, tree, id.nid)
    }

    fn root(registry: &Registry, slot: u16) -> Result<Self, Errno> {
        let (catalog, tree) = registry.find_tree(slot).ok_or(Errno::ENOENT)?;
        let root = tree.image.root();
        Self::at(catalog, tree, root)
    }

    fn at(catalog: Arc<MountedCatalog>, tree: Arc<Tree>, nid: u64) -> Result<Self, Errno> {
        let node = tree.image.node(nid).map_err(|damaged| failed(&catalog, damaged))?;
        Ok(Self { catalog, tree, node })
    }

    fn failed(&self, damaged: Damaged) -> Errno {
        failed(&self.catalog, damaged)
    }

    fn has_content(&self) -> bool {
        !self.node.is_dir() && self.node.size > 0
    }

    /// The answer to LOOKUP. A name that is not there is kept as such: the tree never changes.
    fn lookup(&self, name: &[u8]) -> Result<EntryOut, Errno> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Errno::ENAMETOOLONG);
        }
        if !self.node.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let nid = self.tree.image.lookup(&self.node, name).map_err(|damaged| self.failed(damaged))?;
        let Some(nid) = nid else {
            return Ok(EntryOut { entry_valid: TIMEOUT_SECONDS, ..EntryOut::default() });
        };
        let node = self.tree.image.node(nid).map_err(|damaged| self.failed(damaged))?;
        Ok(self.tree.entry(&node))
    }

    fn attributes(&self) -> Attr {
        self.tree.attributes(&self.node)
    }

    /// The answer to LOOKUP of the tree's folder in the root. That name is not to be kept: the slot may get another tree.
    fn tree_entry(&self) -> EntryOut {
        EntryOut { entry_valid: 0, ..self.tree.entry(&self.node) }
    }

    /// A file without content has no object: nothing to read, nothing to hold.
    fn open_empty(&self) -> Result<OpenOut, Errno> {
        if self.node.is_dir() {
            return Err(Errno::EISDIR);
        }
        Ok(OpenOut { open_flags: fopen::KEEP_CACHE | fopen::NOFLUSH, ..OpenOut::default() })
    }

    /// Fills a listing; gives its bytes.
    fn list(&self, mut listing: Listing<'_>) -> Result<usize, Errno> {
        if !self.node.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        for entry in self.tree.image.entries(&self.node, listing.offset) {
            match entry {
                Ok(entry) => {
                    // One that is damaged is told by its name: who asks for it gets EIO, who does not, gets the others.
                    let node = self.tree.image.node(entry.nid);
                    let known = node.map(|node| self.tree.entry(&node)).unwrap_or_default();
                    let kind = if entry.is_dir { libc::DT_DIR } else { libc::DT_REG };
                    let ino = self.tree.node_id(entry.nid);
                    if !listing.push(ino, kind, entry.name, entry.next, &known) {
                        break;
                    }
                }
                Err(damaged) if listing.is_empty() => return Err(self.failed(damaged)),
                // The next request begins there.
                Err(_) => break,
            }
        }
        Ok(listing.bytes())
    }
}

impl Tree {
    fn node_id(&self, nid: u64) -> u64 {
        NodeId { slot: self.slot, nid }.encode()
    }

    fn entry(&self, node: &TreeNode) -> EntryOut {
        EntryOut {
            nodeid: self.node_id(node.nid),
            generation: self.generation,
            entry_valid: TIMEOUT_SECONDS,
            attr_valid: TIMEOUT_SECONDS,
            attr: self.attributes(node),
            ..EntryOut::default()
        }
    }

    fn attributes(&self, node: &TreeNode) -> Attr {
        let (time, nanos) = (node.mtime.seconds.cast_unsigned(), node.mtime.nanos);
        Attr {
            ino: self.node_id(node.nid),
            size: node.size,
            blocks: node.size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            atimensec: nanos,
            mtimensec: nanos,
            ctimensec: nanos,
            mode: node.mode,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            blksize: STATFS_BLOCK,
            ..Attr::default()
        }
    }

    fn statistics(&self) -> StatfsOut {
        StatfsOut {
            blocks: self.bytes.div_ceil(STATFS_BLOCK.into()),
            files: self.files,
            bsize: STATFS_BLOCK,
            frsize: STATFS_BLOCK,
            namelen: MAX_NAME_BYTES as u32,
            ..StatfsOut::default()
        }
    }
}

fn failed(catalog: &MountedCatalog, damaged: Damaged) -> Errno {
    tracing::error!(dataset = catalog.dataset_uid, catalog = catalog.catalog_id, %damaged, "reading the tree failed");
    Errno::EIO
}
