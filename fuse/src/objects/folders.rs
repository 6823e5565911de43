//! The folders of the object file system: the root, and in it `00` to `ff`, each with the objects whose ids begin so.

use nix::errno::Errno;

use crate::abi::{Attr, EntryOut, ROOT_ID};
use crate::listing::Listing;

/// Node id of folder `00`; those of `01` to `ff` follow.
pub(super) const FIRST: u64 = 2;

/// The folders' ids end here.
pub(super) const AFTER_LAST: u64 = FIRST + 256;

const MODE: u32 = libc::S_IFDIR | 0o500;

/// The attributes of the root or a folder.
pub(super) fn attributes(node_id: u64) -> Attr {
    Attr { ino: node_id, mode: MODE, nlink: 2, blksize: 4096, ..Attr::default() }
}

/// `ab` for the folder with this node id.
pub(super) fn name(node_id: u64) -> [u8; 2] {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let number = (node_id - FIRST) as usize;
    [DIGITS[(number >> 4) & 15], DIGITS[number & 15]]
}

/// The node id of a folder, if there is one of this name.
pub(super) fn of_name(name: &[u8]) -> Option<u64> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(u64::from(c - b'0')),
        b'a'..=b'f' => Some(u64::from(c - b'a') + 10),
        _ => None,
    };
    match name {
        [a, b] => Some(FIRST + (digit(*a)? << 4 | digit(*b)?)),
        _ => None,
    }
}

/// The root lists its folders; the folders list nothing, because objects are only ever asked for by name.
pub(super) fn list(node_id: u64, body: &[u8], plus: bool, answer: &mut [u8]) -> Result<usize, Errno> {
    let mut listing = Listing::new(body, plus, answer)?;
    let dots = [(node_id, b".".to_vec()), (ROOT_ID, b"..".to_vec())];
    let folders = (FIRST..AFTER_LAST).map(|folder| (folder, name(folder).to_vec()));
    let names = dots.into_iter().chain(folders.filter(|_| node_id == ROOT_ID));
    for (index, (ino, name)) in names.enumerate().skip(listing.offset as usize) {
        // Without attributes: whoever wants one asks by name.
        if !listing.push(ino, libc::DT_DIR, &name, index as u64 + 1, &EntryOut::default()) {
            break;
        }
    }
    Ok(listing.bytes())
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::abi::{Dirent, ReadIn};

    #[test]
    fn folders_have_node_ids_2_to_257() {
        assert_eq!((of_name(b"00"), of_name(b"ff")), (Some(2), Some(257)));
        for node_id in FIRST..AFTER_LAST {
            assert_eq!(of_name(&name(node_id)), Some(node_id));
        }
        for name in [&b"f"[..], b"FF", b"fff", b"g0", b""] {
            assert_eq!(of_name(name), None);
        }
    }

    #[test]
    fn a_listing_continues_where_the_last_one_ended() {
        let mut answer = [0; 4096];
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let request = ReadIn { fh: 0, offset, size: 100, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
            let length = list(ROOT_ID, request.as_bytes(), false, &mut answer).unwrap();
            if length == 0 {
                break;
            }
            let mut rest = &answer[..length];
            while !rest.is_empty() {
                let (entry, tail) = Dirent::read_from_prefix(rest).unwrap();
                names.push(String::from_utf8(tail[..entry.namelen as usize].to_vec()).unwrap());
                rest = &rest[(size_of::<Dirent>() + entry.namelen as usize).next_multiple_of(8)..];
                offset = entry.off;
            }
        }
        assert_eq!(names.len(), 258);
        assert_eq!((names[2].as_str(), names[257].as_str()), ("00", "ff"));
    }
}
