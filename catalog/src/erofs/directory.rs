//! The data of a folder: blocks of entries sorted by name, `.` and `..` among them, each block's names behind its entries. Sizes depend on the
//! names alone, so that a folder can be placed before the numbers of its inodes are known.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use super::format::{BLOCK, BLOCK_BITS, Dirent, Inode};

const ENTRY: usize = size_of::<Dirent>();

/// One name of a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// How much room a folder's data takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    blocks: u64,
    /// Bytes used of the last block.
    last: u64,
}

impl Shape {
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut shape = Self { blocks: 1, last: 0 };
        for name in names {
            let more = (ENTRY + name.len()) as u64;
            if shape.last + more > BLOCK {
                shape.blocks += 1;
                shape.last = 0;
            }
            shape.last += more;
        }
        shape
    }

    /// The folder's size in bytes.
    pub(super) fn size(self) -> u64 {
        (self.blocks - 1) * BLOCK + self.last
    }

    /// Bytes that stand right behind the inode; 0 if the last block does not fit beside it.
    pub(super) fn inline(self) -> u64 {
        if self.last + size_of::<Inode>() as u64 <= BLOCK { self.last } else { 0 }
    }

    /// Blocks that stand elsewhere.
    pub(super) fn blocks(self) -> u64 {
        if self.inline() > 0 { self.blocks - 1 } else { self.blocks }
    }
}

/// Adds `.` and `..` at their places to names in byte order: some names sort before them, such as `-a`.
pub(super) fn with_dots<'a>(
    dot: Named<'a>,
    dot_dot: Named<'a>,
    names: impl Iterator<Item = Named<'a>>,
) -> impl Iterator<Item = Named<'a>> {
    let mut names = names.peekable();
    let mut dots = [dot, dot_dot].into_iter().peekable();
    std::iter::from_fn(move || match (dots.peek(), names.peek()) {
        (Some(dot), Some(name)) if name.name < dot.name => names.next(),
        (Some(_), _) => dots.next(),
        (None, _) => names.next(),
    })
}

/// Calls `full` with each block but the last, and returns the last without padding.
pub(super) fn encode<'a, E>(
    names: impl Iterator<Item = Named<'a>>,
    mut full: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let mut block = Vec::new();
    let mut used = 0;
    for named in names {
        let more = ENTRY + named.name.len();
        if used + more > 1 << BLOCK_BITS {
            let mut bytes = encode_block(&block);
            bytes.resize(1 << BLOCK_BITS, 0);
            full(&bytes)?;
            block.clear();
            used = 0;
        }
        block.push(named);
        used += more;
    }
    Ok(encode_block(&block))
}

fn encode_block(names: &[Named<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 << BLOCK_BITS);
    let mut offset = names.len() * ENTRY;
    for named in names {
        let (nid, file_type) = (U64::new(named.nid), named.file_type);
        let dirent = Dirent { nid, name_offset: U16::new(offset as u16), file_type, reserved: 0 };
        bytes.extend_from_slice(dirent.as_bytes());
        offset += named.name.len();
    }
    for named in names {
        bytes.extend_from_slice(named.name);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &[u8]) -> Named<'_> {
        Named { name, nid: 1, file_type: 1 }
    }

    #[test]
    fn dots_stand_where_their_bytes_sort() {
        let names: Vec<&[u8]> = vec![b"-a", b".\x01", b".-", b"..-", b"a"];
        let all: Vec<_> = with_dots(named(b"."), named(b".."), names.into_iter().map(named)).map(|n| n.name).collect();
        let expected: Vec<&[u8]> = vec![b"-a", b".", b".\x01", b".-", b"..", b"..-", b"a"];
        assert_eq!(all, expected);
        assert_eq!(with_dots(named(b"."), named(b".."), std::iter::empty()).count(), 2);
    }

    #[test]
    fn shape_and_encoding_agree() {
        for count in [0_usize, 1, 15, 16, 17, 100, 1000] {
            for len in [1, 7, 200, 255] {
                let names: Vec<_> = (0..count).map(|i| format!("{i:0len$}").into_bytes()).collect();
                let shape = Shape::of(names.iter().map(Vec::as_slice));
                let mut blocks = 0;
                let last = encode(names.iter().map(|name| named(name)), |block| {
                    assert_eq!(block.len() as u64, BLOCK);
                    blocks += 1;
                    Ok::<_, ()>(())
                })
                .unwrap();
                assert_eq!((blocks + 1, last.len() as u64), (shape.blocks, shape.last), "{count} {len}");
            }
        }
    }
}
