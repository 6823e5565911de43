//! How much is loaded ahead at once: apart from the readers' fetches, so that they never queue behind preloads. What comes from the source and
//! what comes from peers have turns of their own, so that neither waits for the other.

use tokio::sync::{Semaphore, SemaphorePermit};

/// So many small objects at once, or a part as many chunks.
const TURNS: usize = 64;
/// Of these, what a chunk takes ...
const TURNS_OF_A_CHUNK: usize = 4;
/// ... and with `Everywhere` so many chunks are read from the source at once by all members together, by each at least two. What a node has
/// brought the others can have, so a few at a time are better than all at the same time. Too few, and beside all that comes from peers the
/// source gets so little of a node's line that the others wait for it: with eight nodes and 16 chunks it took 1.55 times a single transfer,
/// with 32 it took 1.43 times; of shards whose chunks go round evenly, with these, 1.18 times. They fill a line of 10 Gbit/s and 100 ms twice.
const CHUNKS_OF_ALL_BRINGERS: usize = 64;
const CHUNKS_OF_A_BRINGER: usize = 2;

/// Up to this size an object is small.
pub const SMALL: u64 = 1 << 20;

/// What may be loaded ahead at once.
#[derive(Debug)]
pub struct Turns {
    from_source: Semaphore,
    from_peers: Semaphore,
}

/// What a turn is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// What this node owns.
    Own,
    /// What this node brings for so many members.
    Bring(usize),
    /// What another member brings.
    FromPeer,
}

impl Default for Turns {
    fn default() -> Self {
        Self { from_source: Semaphore::new(TURNS), from_peers: Semaphore::new(TURNS) }
    }
}

impl Turns {
    /// Waits until so many bytes may be loaded; the turn ends when the result is dropped.
    pub async fn take(&self, load: Load, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let turns = if bytes <= SMALL {
            1
        } else if let Load::Bring(members) = load {
            TURNS / (CHUNKS_OF_ALL_BRINGERS / members.max(1)).max(CHUNKS_OF_A_BRINGER)
        } else {
            TURNS_OF_A_CHUNK
        };
        let semaphore = if load == Load::FromPeer { &self.from_peers } else { &self.from_source };
        // Never closed.
        semaphore.acquire_many(turns as u32).await.ok()
    }
}
