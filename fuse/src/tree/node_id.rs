//! Node ids of trees: bit 62, 16 bits of the slot, 46 bits of the inode's number in the image. Objects have bit 63, the root and its folders
//! neither.

/// Bits of an inode's number.
const NID_BITS: u32 = 46;

/// The topmost two bits of a node id of a tree.
const TREE: u64 = 0b01;

/// What a tree's folder is called in the root, before the slot's number.
const FOLDER: &str = "tree-";

/// A node of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId {
    /// Where the tree is.
    pub slot: u16,
    /// Which of its inodes.
    pub nid: u64,
}

impl NodeId {
    /// The node of a tree with this node id; none if it is of something else.
    pub fn of(node_id: u64) -> Option<Self> {
        (node_id >> 62 == TREE)
            .then_some(Self { slot: (node_id >> NID_BITS) as u16, nid: node_id & ((1 << NID_BITS) - 1) })
    }

    /// Its node id.
    pub fn encode(self) -> u64 {
        TREE << 62 | u64::from(self.slot) << NID_BITS | self.nid & ((1 << NID_BITS) - 1)
    }
}

/// The name, in the root, of the folder of the tree in a slot.
pub fn folder_name(slot: u16) -> String {
    format!("{FOLDER}{slot}")
}

/// The slot of a folder's name.
pub fn slot_of_folder(name: &[u8]) -> Option<u16> {
    let slot = std::str::from_utf8(name).ok()?.strip_prefix(FOLDER)?.parse().ok()?;
    // One name a slot: `tree-07` is none.
    (folder_name(slot).as_bytes() == name).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_tells_slot_and_inode_and_is_never_one_of_something_else() {
        for slot in [0, 1, 7, u16::MAX] {
            for nid in [0, 36, (1 << NID_BITS) - 1] {
                let id = NodeId { slot, nid };
                assert_eq!(NodeId::of(id.encode()), Some(id));
                assert_eq!(id.encode() >> 62, 1);
            }
        }
        for other in [0, 1, 2, 257, 1 << 63, u64::MAX] {
            assert_eq!(NodeId::of(other), None);
        }
    }

    #[test]
    fn a_slot_has_one_folder() {
        assert_eq!(slot_of_folder(folder_name(300).as_bytes()), Some(300));
        for name in [&b"tree-"[..], b"tree-07", b"tree-+7", b"tree-65536", b"tree-x", b"00", b"tree-\xff"] {
            assert_eq!(slot_of_folder(name), None);
        }
    }
}
