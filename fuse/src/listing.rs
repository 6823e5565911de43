//! The answer to READDIR and READDIRPLUS as it is filled.

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{Dirent, EntryOut, ReadIn};

/// Entries put one after the other into an answer, as long as the reader has room.
pub struct Listing<'a> {
    /// Where the reader wants to go on.
    pub offset: u64,
    plus: bool,
    space: &'a mut [u8],
    used: usize,
}

impl<'a> Listing<'a> {
    /// An empty answer to the request in `body`; `plus`: to READDIRPLUS.
    pub fn new(body: &[u8], plus: bool, answer: &'a mut [u8]) -> Result<Self, Errno> {
        let (request, _) = ReadIn::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        let room = (request.size as usize).min(answer.len());
        Ok(Self { offset: request.offset, plus, space: answer.get_mut(..room).unwrap_or_default(), used: 0 })
    }

    /// Adds an entry; false if there is no room for it. `kind` is a `DT_` constant, `next` where reading goes on behind it. `entry` goes into
    /// READDIRPLUS only: as LOOKUP would answer, or with node id 0 to tell no more than the name.
    pub fn push(&mut self, ino: u64, kind: u8, name: &[u8], next: u64, entry: &EntryOut) -> bool {
        let head = if self.plus { entry.as_bytes() } else { &[] };
        let length = head.len() + (size_of::<Dirent>() + name.len()).next_multiple_of(8);
        let Some(place) = self.space.get_mut(self.used..self.used + length) else { return false };
        let (head_place, rest) = place.split_at_mut(head.len());
        head_place.copy_from_slice(head);
        let dirent = Dirent { ino, off: next, namelen: name.len() as u32, r#type: kind.into() };
        let (dirent_place, rest) = rest.split_at_mut(size_of::<Dirent>());
        dirent_place.copy_from_slice(dirent.as_bytes());
        let (name_place, padding) = rest.split_at_mut(name.len());
        name_place.copy_from_slice(name);
        padding.fill(0);
        self.used += length;
        true
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many bytes of the answer are filled.
    pub fn bytes(self) -> usize {
        self.used
    }
}
