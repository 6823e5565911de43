//! The extended attributes of a file, as they stand behind its inode: those by which overlayfs finds its data, and those that tell a
//! user where it comes from.

use crate::ObjectId;

pub(super) const INDEX_USER: u8 = 1;
pub(super) const INDEX_TRUSTED: u8 = 4;
/// Before a node's first attribute.
pub(super) const HEADER: usize = 12;
/// Name, behind `trusted.`, of the attribute that says where a file's data is.
pub(super) const REDIRECT: &[u8] = b"overlay.redirect";

/// Puts a file's attributes into `out`; an empty file is the kernel's to serve, so nothing redirects it.
pub(super) fn encode(out: &mut Vec<u8>, object: Option<&ObjectId>, url: &[u8], etag: &[u8]) {
    out.clear();
    out.resize(HEADER, 0);
    if let Some(id) = object {
        // The two that every lookup asks for are first: the kernel searches in order.
        push(out, INDEX_TRUSTED, b"overlay.metacopy", b"");
        push(out, INDEX_TRUSTED, REDIRECT, format!("/{}", id.relative_path()).as_bytes());
    }
    push(out, INDEX_USER, b"forebay.source", url);
    if !etag.is_empty() {
        push(out, INDEX_USER, b"forebay.etag", etag);
    }
}

/// The inode's count for attributes of so many bytes: 1 for the header and 1 for each 4 bytes after it.
pub(super) fn count(bytes: usize) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - HEADER) / 4 + 1) as u16 }
}

fn push(out: &mut Vec<u8>, index: u8, name: &[u8], value: &[u8]) {
    out.extend_from_slice(&[name.len() as u8, index]);
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_counted_in_fours() {
        let mut out = vec![1; 99];
        encode(&mut out, None, b"u", b"");
        assert_eq!(out.len(), 12 + 4 + 14 + 1 + 1);
        assert_eq!(count(out.len()), 6);
        assert_eq!(&out[12..], b"\x0e\x01\x01\0forebay.sourceu\0");
        encode(&mut out, Some(&ObjectId::from_bytes([0xab; 16])), b"u", b"e");
        assert_eq!(&out[12..32], b"\x10\x04\0\0overlay.metacopy");
        assert_eq!(&out[32..52], b"\x10\x04\x22\0overlay.redirect");
        assert_eq!(&out[52..56], b"/ab/");
        assert_eq!(out.len() % 4, 0);
        assert_eq!(count(0), 0);
    }
}
