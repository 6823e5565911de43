//! What a listing said, kept compactly: a fixed record an entry, and paths and ETags in an arena of 1 MiB pieces, which grows without
//! copying. Entries arrive in any order; [`Entries::sorted`] gives the order in which the tree is walked. A writer for trees that do not
//! fit in memory would replace this module by sorted runs on disk and keep the rest.

use std::cmp::Ordering;

use crate::{Mtime, ObjectId, SourceIndex};

const PIECE: usize = 1 << 20;
const OFFSET_BITS: u32 = PIECE.trailing_zeros();

/// A file, or a folder that is in the tree even if nothing is in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) id: ObjectId,
    pub(crate) size: u64,
    pub(crate) mtime: Mtime,
    text: u64,
    path_len: u16,
    etag_len: u16,
    pub(crate) source: SourceIndex,
    pub(crate) is_dir: bool,
}

/// The entries of one catalog.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    entries: Vec<Entry>,
    pieces: Vec<Vec<u8>>,
}

/// What [`Entries::add_file`] takes beside the path.
pub(crate) struct NewFile<'a> {
    pub(crate) id: ObjectId,
    pub(crate) size: u64,
    pub(crate) mtime: Mtime,
    pub(crate) etag: &'a str,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Path and ETag are at most [`crate::MAX_PATH_BYTES`] and [`crate::MAX_ETAG_BYTES`]; the caller has checked.
    pub(crate) fn add_file(&mut self, source: SourceIndex, path: &[u8], file: &NewFile<'_>) {
        let text = self.keep(path, file.etag.as_bytes());
        self.entries.push(Entry {
            id: file.id,
            size: file.size,
            mtime: file.mtime,
            text,
            path_len: path.len() as u16,
            etag_len: file.etag.len() as u16,
            source,
            is_dir: false,
        });
    }

    pub(crate) fn add_directory(&mut self, source: SourceIndex, path: &[u8]) {
        let text = self.keep(path, b"");
        let (id, mtime) = (ObjectId::from_bytes([0; 16]), Mtime::default());
        let path_len = path.len() as u16;
        self.entries.push(Entry { id, size: 0, mtime, text, path_len, etag_len: 0, source, is_dir: true });
    }

    pub(crate) fn get(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    /// The path in the tree, without a leading slash.
    pub(crate) fn path(&self, entry: &Entry) -> &[u8] {
        self.text(entry.text, usize::from(entry.path_len))
    }

    pub(crate) fn etag(&self, entry: &Entry) -> &[u8] {
        self.text(entry.text + u64::from(entry.path_len), usize::from(entry.etag_len))
    }

    /// All entries in the order of a walk: a folder, then what is in it, names in byte order. Of entries with one path, folders come
    /// first, then earlier sources, then the newest.
    pub(crate) fn sorted(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.entries.len() as u32).collect();
        // Stable, since that is the quick one for listings, which arrive almost sorted.
        order.sort_by(|a, b| {
            let (a, b) = (self.get(*a), self.get(*b));
            walk_order(self.path(a), self.path(b)).then_with(|| {
                let tie = |e: &Entry| (!e.is_dir, e.source, std::cmp::Reverse(e.mtime), e.size);
                tie(a).cmp(&tie(b)).then_with(|| self.etag(a).cmp(self.etag(b)))
            })
        });
        order
    }

    fn keep(&mut self, path: &[u8], etag: &[u8]) -> u64 {
        let len = path.len() + etag.len();
        if self.pieces.last().is_none_or(|piece| piece.len() + len > PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let index = self.pieces.len() - 1;
        let piece = &mut self.pieces[index];
        let offset = piece.len();
        piece.extend_from_slice(path);
        piece.extend_from_slice(etag);
        (index as u64) << OFFSET_BITS | offset as u64
    }

    fn text(&self, at: u64, len: usize) -> &[u8] {
        // The end of a piece is the start of the next in this numbering; only an empty text stands there.
        if len == 0 {
            return &[];
        }
        let start = (at as usize) & (PIECE - 1);
        &self.pieces[(at >> OFFSET_BITS) as usize][start..start + len]
    }
}

/// Compares two paths segment by segment, that is bytewise with `/` before all other bytes (NUL is in no path).
fn walk_order(a: &[u8], b: &[u8]) -> Ordering {
    let common = common_prefix(a, b);
    match (a.get(common), b.get(common)) {
        (None, None) => Ordering::Equal,
        (None | Some(b'/'), Some(_)) => Ordering::Less,
        (Some(_), None | Some(b'/')) => Ordering::Greater,
        (Some(x), Some(y)) => x.cmp(y),
    }
}

/// How many bytes two texts begin with in common.
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    // Eight at a time: sorting millions of paths with long common beginnings is most of a catalog's making.
    let eights = a.chunks_exact(8).zip(b.chunks_exact(8)).take_while(|(x, y)| x == y).count() * 8;
    eights + a[eights..].iter().zip(&b[eights..]).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_a_walk_keeps_what_is_in_a_folder_together() {
        let mut paths: Vec<&[u8]> =
            vec![b"a/b", b"a.b", b"a", b"a/", b"", b"a-", b"b", b"a/b/c", b"a/b.c", b"a\xff", b"a\x01"];
        paths.sort_by(|a, b| walk_order(a, b));
        let expected: Vec<&[u8]> =
            vec![b"", b"a", b"a/", b"a/b", b"a/b/c", b"a/b.c", b"a\x01", b"a-", b"a.b", b"a\xff", b"b"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn the_arena_gives_back_what_it_was_given_across_pieces() {
        let mut entries = Entries::default();
        let paths: Vec<Vec<u8>> = (0..1000_u16).map(|i| vec![(i % 251) as u8 + 1; usize::from(i) * 4 + 1]).collect();
        for path in &paths {
            let etag = "e".repeat(path.len());
            let new = NewFile { id: ObjectId::from_bytes([1; 16]), size: 1, mtime: Mtime::default(), etag: &etag };
            entries.add_file(SourceIndex(0), path, &new);
        }
        assert!(entries.pieces.len() > 1 && entries.pieces.iter().all(|piece| piece.capacity() == PIECE));
        for (i, path) in paths.iter().enumerate() {
            let entry = entries.get(i as u32);
            assert_eq!((entries.path(entry), entries.etag(entry).len()), (path.as_slice(), path.len()));
        }
    }
}
