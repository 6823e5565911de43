//! A chunk on its way into its file. What has come of it can be written before the rest is here: it stays absent until all of it is, and nobody is
//! told of a part. That is for bytes which nothing that comes after them could prove wrong: two who bring the same chunk write the same.

use std::fs::File;
use std::io;
use std::sync::Arc;

use forebay_catalog::ObjectId;
use tokio::sync::OwnedSemaphorePermit;

use super::commit::Op;
use super::lease::Lease;
use super::slot::Body;
use super::usage::Writing;
use super::{ObjectRef, Store, StoreError, backing};
use crate::units::{ByteRange, ChunkIndex, chunk_count};

/// Pieces are written up to the last whole page, so that no page is written twice. A chunk begins at one.
const PAGE: u64 = 4096;

/// A chunk that is being written. Dropped before its end it stays absent; what was written of it lies in the file until the chunk is brought again.
#[derive(Debug)]
pub struct Landing {
    store: Arc<Store>,
    object: ObjectRef,
    chunk: ChunkIndex,
    /// Within the object.
    range: ByteRange,
    pin: Lease,
    file: Arc<File>,
    /// Until it counts as used.
    _writing: Writing,
    /// Bytes in the file so far.
    written: u64,
    /// What has come after them: less than a page.
    rest: Vec<u8>,
    crc: u32,
}

impl Store {
    /// Begins to write a chunk of which nothing has come yet. None: it is to be gathered and given to [`Store::write_chunk`], since it has to be
    /// verified first, or the disk takes nothing just now. Waits for the disk.
    pub fn land(self: &Arc<Self>, object: &ObjectRef, chunk: ChunkIndex) -> Option<Landing> {
        // The answer for a whole object may come with the source's own checksum.
        if chunk_count(object.size) < 2 || self.faults.is_lost(&object.id, chunk) || self.faults.writes_fail() {
            return None;
        }
        let writing = self.find_room(object.dataset, chunk.range(object.size).length)?;
        let pin = self.try_pin(object)?;
        self.begin(object, chunk, pin, writing).inspect_err(|error| self.faults.report_write(error)).ok()?
    }

    /// Opens the file. None: the object has been dropped, or has the chunk.
    pub(super) fn begin(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        pin: Lease,
        writing: Writing,
    ) -> Result<Option<Landing>, StoreError> {
        let id = object.id;
        let failed = |error| StoreError::io(format!("writing the cached object {id}"), error);
        self.put_right(&id).map_err(failed)?;
        if !self.file_is_sound(&id, &pin, object.size).map_err(failed)? || self.has(&id, chunk) {
            return Ok(None);
        }
        let file = Arc::new(self.backing.open_for_writing(&id, object.size).map_err(failed)?);
        let range = chunk.range(object.size);
        Ok(Some(Landing {
            store: Arc::clone(self),
            object: *object,
            chunk,
            range,
            pin,
            file,
            _writing: writing,
            written: 0,
            rest: Vec::new(),
            crc: 0,
        }))
    }

    /// False when the file of an object that is here in part is gone or cut, or belongs in `partial/` and is not there: the object has been dropped.
    fn file_is_sound(&self, id: &ObjectId, pin: &Lease, size: u64) -> io::Result<bool> {
        let shard = self.slots.lock(id);
        let slot = shard.get(id).filter(|slot| slot.generation == pin.generation);
        let Some(slot) = slot.filter(|slot| matches!(slot.body, Body::Partial(_)) && slot.bytes() > 0) else {
            return Ok(true);
        };
        let mut length = self.backing.partial_length(id)?;
        if length.is_none() && !slot.verified && self.backing.unpublish(id).is_ok() {
            // The power went between the index and the directory.
            length = self.backing.partial_length(id)?;
        }
        drop(shard);
        if length == Some(size) {
            return Ok(true);
        }
        self.lose_file(id, pin.generation, length.is_some());
        Ok(false)
    }
}

impl Landing {
    /// The crc32c of what has come.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Takes the next bytes. Waits for the disk.
    pub fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, piece);
        let come = self.written + (self.rest.len() + piece.len()) as u64;
        let upto = if come == self.range.length { come } else { come / PAGE * PAGE };
        // Of this piece.
        let now = usize::try_from(upto.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let Some((now, later)) = now.checked_sub(self.rest.len()).and_then(|now| piece.split_at_checked(now)) else {
            self.rest.extend_from_slice(piece);
            return Ok(());
        };
        if upto > self.written {
            self.write(now)?;
        }
        self.written = upto;
        self.rest.clear();
        self.rest.extend_from_slice(later);
        Ok(())
    }

    /// Writes all of the chunk at once, whose crc32c is known.
    pub(super) fn put(&mut self, bytes: &[u8], crc: u32) -> Result<(), StoreError> {
        self.crc = crc;
        let _turn = self.store.writers.turn(&self.object.id);
        backing::write_at(&self.file, bytes, self.range.offset)
            .map_err(|error| StoreError::io(format!("writing the cached object {}", self.object.id), error))
    }

    /// Writes the rest and what follows it.
    fn write(&self, piece: &[u8]) -> io::Result<()> {
        let _turn = self.store.writers.turn(&self.object.id);
        backing::write_both_at(&self.file, [&self.rest, piece], self.range.offset + self.written)
            .inspect_err(|error| self.failed(error))
    }

    fn failed(&self, error: &io::Error) {
        let error = io::Error::new(error.kind(), error.to_string());
        self.store.faults.report_write(&StoreError::io(format!("writing the cached object {}", self.object.id), error));
    }

    /// All of it has come: it can be read from now on, also through files that are open already, and survives a crash a little later. An object that
    /// has been dropped meanwhile stays so.
    pub async fn end(self) -> Result<(), StoreError> {
        let permit = Arc::clone(&self.store.uncommitted).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        self.publish(permit)
    }

    pub(super) fn publish(self, permit: OwnedSemaphorePermit) -> Result<(), StoreError> {
        let Self { store, object, chunk, range, pin, file, crc, .. } = self;
        let id = object.id;
        let first = {
            let mut shard = store.slots.lock(&id);
            let Some(slot) = shard.get_mut(&id).filter(|slot| slot.generation == pin.generation) else {
                return Ok(());
            };
            let Body::Partial(partial) = &mut slot.body else {
                store.backing.remove_stray(&id);
                return Ok(());
            };
            let first = partial.written.count() == 0;
            if !partial.written.insert(chunk) {
                return Ok(());
            }
            if let Some(kept) = partial.crcs.get_mut(chunk.0 as usize) {
                *kept = crc;
            }
            store.usage.add(slot.dataset, range.length);
            store.checked.insert(&id, slot, chunk);
            // It may have been lost since it began to come.
            store.faults.mended(id, chunk);
            first
        };
        if first {
            // Not under the shard's lock: the order's comes before it.
            store.eviction.lock().insert(id, object.dataset, object.size);
        }
        store.send(Op::Written { pin, chunk, file, permit })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use bytes::Bytes;
    use forebay_protocol::config::CHUNK_BYTES;
    use forebay_protocol::layout::CacheLayout;

    use super::super::DatasetSlot;
    use super::super::backing::failing::{self, Call};
    use super::*;

    const CAPACITY: u64 = 4 * CHUNK_BYTES;
    const SIZE: u64 = 2 * CHUNK_BYTES + 5000;
    const FIRST: ChunkIndex = ChunkIndex(0);
    const LAST: ChunkIndex = ChunkIndex(2);

    fn object(n: u8) -> ObjectRef {
        ObjectRef { id: ObjectId::new("landing", &[n], "e", SIZE), size: SIZE, dataset: DatasetSlot(0) }
    }

    fn bytes_of(chunk: ChunkIndex) -> Vec<u8> {
        let range = chunk.range(SIZE);
        (range.offset..range.end()).map(|at| (at / 7 % 251) as u8).collect()
    }

    struct Fixture {
        _folder: tempfile::TempDir,
        layout: CacheLayout,
        store: Arc<Store>,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let layout = CacheLayout::new(folder.path());
            let store = Store::open(&layout, CAPACITY, Arc::new(|_| ()), || ()).unwrap();
            store.dataset("d").unwrap();
            Self { _folder: folder, layout, store }
        }

        fn land(&self, n: u8, chunk: ChunkIndex) -> Landing {
            self.store.land(&object(n), chunk).expect("there is room, and the disk works")
        }

        /// Lands a chunk in pieces of these sizes, in turn.
        async fn bring(&self, n: u8, chunk: ChunkIndex, sizes: &[usize]) {
            let (mut landing, bytes) = (self.land(n, chunk), bytes_of(chunk));
            let (mut left, mut sizes) = (&bytes[..], sizes.iter().cycle());
            while !left.is_empty() {
                let (piece, after) = left.split_at((*sizes.next().unwrap()).min(left.len()));
                landing.take(piece).unwrap();
                assert!(!self.store.has(&object(n).id, chunk), "not before all of it is here");
                left = after;
            }
            assert_eq!(landing.crc(), crc32c::crc32c(&bytes));
            landing.end().await.unwrap();
        }

        async fn assert_here(&self, n: u8, chunk: ChunkIndex) {
            let (bytes, crc) = self.store.read_chunk(&object(n), chunk).await.unwrap().expect("it is here");
            assert!(bytes == bytes_of(chunk) && crc == crc32c::crc32c(&bytes), "object {n}, {chunk:?}");
        }
    }

    #[tokio::test]
    async fn pieces_of_any_size_make_the_chunk_and_it_survives() {
        let f = Fixture::new();
        f.bring(0, FIRST, &[1, 4095, 4096, 10_000, 3, 417_792]).await;
        f.bring(0, ChunkIndex(1), &[CHUNK_BYTES as usize]).await;
        f.bring(0, LAST, &[1]).await;
        f.store.flush().await.unwrap();
        f.store.close().await;
        let store = Store::open(&f.layout, CAPACITY, Arc::new(|_| ()), || ()).unwrap();
        let f = Fixture { store, ..f };
        assert!(f.store.is_complete(&object(0).id));
        for chunk in [FIRST, ChunkIndex(1), LAST] {
            f.assert_here(0, chunk).await;
        }
    }

    #[tokio::test]
    async fn what_is_given_up_half_way_stays_absent_and_gives_its_room_back() {
        let f = Fixture::new();
        let mut landings: Vec<_> = (0..4).map(|n| f.land(n, FIRST)).collect();
        assert!(f.store.land(&object(5), FIRST).is_none(), "four chunks on their way fill the cache");
        for landing in &mut landings {
            landing.take(&bytes_of(FIRST)[..CHUNK_BYTES as usize / 2]).unwrap();
        }
        drop(landings);
        assert_eq!(f.store.used_bytes(), 0);
        assert!(!f.store.has(&object(0).id, FIRST));
        assert!(f.store.backing.open(&object(0).id).unwrap().is_none(), "no empty file stays");
        f.bring(5, FIRST, &[100_000]).await;
        f.assert_here(5, FIRST).await;
    }

    #[tokio::test]
    async fn two_who_bring_the_same_chunk_do_no_harm() {
        let f = Fixture::new();
        let (mut first, mut second) = (f.land(0, FIRST), f.land(0, FIRST));
        let bytes = bytes_of(FIRST);
        first.take(&bytes).unwrap();
        second.take(&bytes[..5000]).unwrap();
        first.end().await.unwrap();
        assert!(f.store.land(&object(0), FIRST).is_none(), "it is here");
        second.take(&bytes[5000..]).unwrap();
        second.end().await.unwrap();
        assert_eq!(f.store.used_bytes(), CHUNK_BYTES);
        f.assert_here(0, FIRST).await;
    }

    #[tokio::test]
    async fn an_object_that_is_dropped_meanwhile_stays_so() {
        let f = Fixture::new();
        f.bring(0, LAST, &[1000]).await;
        let mut landing = f.land(0, FIRST);
        landing.take(&bytes_of(FIRST)).unwrap();
        assert!(f.store.forget(&object(0).id));
        landing.end().await.unwrap();
        assert!(!f.store.has(&object(0).id, FIRST));
        f.store.flush().await.unwrap();
        assert_eq!(f.store.used_bytes(), 0);
    }

    #[tokio::test]
    async fn a_disk_that_fails_half_way_is_told_of_and_takes_no_more_landings_until_it_works() {
        let f = Fixture::new();
        let mut landing = f.land(0, FIRST);
        let bytes = bytes_of(FIRST);
        landing.take(&bytes[..5000]).unwrap();
        let path = f.layout.partial().join(object(0).id.relative_path());
        failing::fail(&path, Call::Write);
        landing.take(&bytes[5000..]).unwrap_err();
        assert!(f.store.faults().writes_fail());
        assert!(f.store.land(&object(1), FIRST).is_none());
        failing::heal(&path, Call::Write);
        drop(landing);
        f.store.faults().writes_work();
        f.bring(0, FIRST, &[100_000]).await;
        f.assert_here(0, FIRST).await;
    }

    #[tokio::test]
    async fn what_may_have_to_be_verified_first_is_gathered() {
        let f = Fixture::new();
        let whole = ObjectRef { id: ObjectId::new("landing", b"whole", "e", 1 << 20), size: 1 << 20, ..object(0) };
        assert!(f.store.land(&whole, FIRST).is_none(), "its answer may come with a checksum");
        let bytes = Bytes::from(bytes_of(FIRST));
        let crc = crc32c::crc32c(&bytes);
        f.store.write_chunk(&object(0), FIRST, bytes, crc).await.unwrap();
        f.store.flush().await.unwrap();
        let path = f.layout.partial().join(object(0).id.relative_path());
        std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"damage", 17).unwrap();
        assert!(f.store.read_chunk(&object(0), FIRST).await.unwrap().is_none());
        assert!(f.store.land(&object(0), FIRST).is_none(), "what was here is mended by who has it");
    }
}
