//! The node's memory: one budget, split into shares that never lend to each other, so that nodes which wait for each other always have room
//! for what the other one reads from the source. Whoever holds bytes on their way holds a piece of a share.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use forebay_protocol::config::CHUNK_BYTES;

/// The least that a node can work with: each share has room for a chunk.
pub const LEAST: u64 = 64 << 20;

/// What is counted at once; smaller objects count as much.
const UNIT: u64 = 4096;

/// What a connection from a peer may take: TLS records on their way in and out, and a request that is being read.
const CONNECTION: u64 = 64 << 10;

/// A piece of a share, until the last holder is gone.
pub type Memory = Arc<OwnedSemaphorePermit>;

/// The shares of a node's memory.
#[derive(Clone, Debug)]
pub struct Shares {
    /// Bytes for what the store remembers of its objects. The store keeps to it by itself.
    pub index: u64,
    /// Chunks on their way from a source.
    pub from_source: Share,
    /// Chunks on their way from a peer.
    pub from_peers: Share,
    /// Chunks on their way from the first owner to a peer; only where there are replicas in several zones.
    pub relayed: Share,
    /// Bytes on their way to peers that can't be sent straight from a file.
    pub to_peers: Share,
    /// Chunks on their way to readers of this machine.
    pub local: Share,
    /// Buffers that wait to be used again.
    pub buffers: Buffers,
    /// How many connections peers may make.
    pub connections: Arc<Semaphore>,
}

/// A part of the memory. Who wants more than there is waits, in turn.
#[derive(Clone, Debug)]
pub struct Share {
    units: Arc<Semaphore>,
    most: u32,
    buffers: Buffers,
}

impl Shares {
    /// Splits so many bytes; less than [`LEAST`] are taken as so much.
    pub fn of(bytes: u64) -> Self {
        let sixteenth = bytes.max(LEAST) / 16;
        let buffers = Buffers::of(sixteenth);
        let share = |sixteenths: u64| Share::of(sixteenths * sixteenth, buffers.clone());
        let connections = usize::try_from(2 * sixteenth / CONNECTION).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            index: 3 * sixteenth,
            from_source: share(3),
            from_peers: share(3),
            relayed: share(1),
            to_peers: share(2),
            local: share(1),
            buffers,
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
        }
    }
}

impl Share {
    fn of(bytes: u64, buffers: Buffers) -> Self {
        let most = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        Self { units: Arc::new(Semaphore::new(most as usize)), most, buffers }
    }

    /// Where the bytes that a piece was reserved for may go.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// A piece for so many bytes; waits until there is one. More than the whole share counts as the whole. None when the share is closed,
    /// which it never is.
    pub async fn reserve(&self, bytes: u64) -> Option<Memory> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.most);
        Arc::clone(&self.units).acquire_many_owned(units).await.ok().map(Arc::new)
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> u64 {
        self.units.available_permits() as u64 * UNIT
    }
}

/// Buffers of a whole chunk that are used again: the kernel takes longer to make fresh pages than to fill old ones. Those in use are part of
/// their users' shares, those that wait are this share.
#[derive(Clone, Debug)]
pub struct Buffers {
    waiting: Arc<Mutex<Vec<Vec<u8>>>>,
    most: usize,
}

/// A buffer that goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    home: Option<Buffers>,
}

impl Buffers {
    fn of(bytes: u64) -> Self {
        Self { waiting: Arc::default(), most: usize::try_from(bytes / CHUNK_BYTES).unwrap_or(1).max(1) }
    }

    /// None wait: every buffer is a fresh one.
    pub fn fresh() -> Self {
        Self { waiting: Arc::default(), most: 0 }
    }

    /// A buffer of exactly so many bytes, with whatever in it.
    pub fn take(&self, length: usize) -> Buffer {
        if length as u64 != CHUNK_BYTES {
            return Buffer { bytes: vec![0; length], home: None };
        }
        let waiting = self.waiting.lock().pop();
        Buffer { bytes: waiting.unwrap_or_else(|| vec![0; length]), home: Some(self.clone()) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut waiting = home.waiting.lock();
            if waiting.len() < home.most {
                waiting.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_shares_add_up_to_no_more_than_the_budget_and_each_holds_a_chunk() {
        for bytes in [LEAST, 100 << 20, 512 << 20, 7 << 30] {
            let shares = Shares::of(bytes);
            let pieces = [&shares.from_source, &shares.from_peers, &shares.relayed, &shares.to_peers, &shares.local]
                .map(Share::free);
            assert!(pieces.iter().all(|piece| *piece >= CHUNK_BYTES), "{pieces:?}");
            let connections = shares.connections.available_permits() as u64 * CONNECTION;
            let buffers = shares.buffers.most as u64 * CHUNK_BYTES;
            assert!(pieces.iter().sum::<u64>() + shares.index + connections + buffers <= bytes);
        }
    }

    #[tokio::test]
    async fn what_is_reserved_is_gone_until_it_is_dropped_and_too_much_waits_for_all() {
        let shares = Shares::of(LEAST);
        let all = shares.local.free();
        let one = shares.local.reserve(1).await.unwrap();
        assert_eq!(shares.local.free(), all - UNIT);
        let local = shares.local.clone();
        let waiting = tokio::spawn(async move { local.reserve(u64::MAX).await.unwrap() });
        drop(one);
        let everything = waiting.await.unwrap();
        assert_eq!(shares.local.free(), 0);
        drop(everything);
        assert_eq!(shares.local.free(), all);
    }

    #[test]
    fn a_buffer_comes_back_and_no_more_wait_than_the_share_holds() {
        let buffers = Buffers::of(2 * CHUNK_BYTES);
        let chunk = CHUNK_BYTES as usize;
        let mut first = buffers.take(chunk);
        first.as_mut()[7] = 42;
        let others: Vec<_> = (0..5).map(|_| buffers.take(chunk)).collect();
        drop(first);
        assert_eq!(buffers.take(chunk).as_ref()[7], 42);
        drop(others);
        assert_eq!(buffers.waiting.lock().len(), 2);
        assert_eq!(buffers.take(5).as_ref().len(), 5);
    }
}
