//! Where what is in the log: a header, and for each worker a region of slots and entries. A request begins with its length; where that is 0 there is none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::abi;

/// First bytes of a log; changes with its layout.
const MAGIC: [u8; 16] = *b"forebay-reqs--01";

/// The regions begin here. The bytes before them are locked in their stead, one for each.
const HEADER: u64 = 4096;

/// Workers that may serve a session at once. In a rolling update there are two.
pub(super) const REGIONS: u64 = 8;

/// Slots of a region: threads of a worker that read requests.
pub(crate) const SLOTS: usize = 4;

/// Bytes of a slot: as much as the kernel wants to have room for.
pub(super) const SLOT_BYTES: usize = abi::MIN_READ_BUFFER;

/// Requests of a worker whose answers take time, all of them READs. There may be more, as many as readers wait; those are waited for by the thread that
/// read them.
pub(crate) const ENTRIES: u32 = 4096;

/// Bytes of an entry: a READ has 80. None crosses a page.
pub(super) const ENTRY_BYTES: usize = 128;

const REGION_BYTES: u64 = (SLOTS * SLOT_BYTES + ENTRIES as usize * ENTRY_BYTES) as u64;

/// Memory is used for what is touched.
const LENGTH: u64 = HEADER + REGIONS * REGION_BYTES;

/// Where in the log a request is.
#[derive(Debug, PartialEq, Eq)]
pub struct Place(pub(super) u64);

/// Makes an empty log, for a session that has none.
pub fn create() -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("forebay-requests", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(LENGTH)?;
    file.write_all_at(&MAGIC, 0)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Whether a file is a log, of this version. Asks nothing that another file could make wait.
pub fn is_log(file: impl AsFd) -> bool {
    let is_sealed = |seals: SealFlags| seals.contains(SealFlags::SHRINK);
    let mut magic = [0; MAGIC.len()];
    rustix::fs::fcntl_get_seals(&file).is_ok_and(is_sealed)
        && rustix::io::pread(&file, &mut magic[..], 0) == Ok(magic.len())
        && magic == MAGIC
}

/// Whether it has all the regions, so that none of them ends before its time.
pub(super) fn is_whole(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.len() == LENGTH)
}

/// Where slot `number` of a region begins.
pub(super) fn slot(region: u64, number: usize) -> Place {
    Place(offset(region) + (number * SLOT_BYTES) as u64)
}

/// Where entry `number` of a region begins.
pub(super) fn entry(region: u64, number: u32) -> Place {
    Place(offset(region) + (SLOTS * SLOT_BYTES + number as usize * ENTRY_BYTES) as u64)
}

/// The requests in a region, and where each is.
pub(super) fn requests(file: &File, region: u64) -> io::Result<Vec<(Place, Vec<u8>)>> {
    let mut bytes = vec![0; REGION_BYTES as usize];
    file.read_exact_at(&mut bytes, offset(region))?;
    let (slots, entries) = bytes.split_at(SLOTS * SLOT_BYTES);
    let places = slots.chunks_exact(SLOT_BYTES).chain(entries.chunks_exact(ENTRY_BYTES));
    let mut found = Vec::new();
    let mut at = offset(region);
    for place in places {
        let length = place.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length)) as usize;
        if length > 0 {
            found.push((Place(at), place.get(..length).unwrap_or(place).to_vec()));
        }
        at += place.len() as u64;
    }
    Ok(found)
}

fn offset(region: u64) -> u64 {
    HEADER + region * REGION_BYTES
}
