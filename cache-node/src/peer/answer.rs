//! Answers, made ready to be sent: whole chunks are lent from their file, small ones are copied together by one blocking task. What has gone
//! between the first look and this one is fetched again.

use std::sync::Arc;

use bytes::Bytes;
use forebay_protocol::config::CHUNK_BYTES;
use forebay_protocol::transfer::{Answer, HEADER_BYTES, MAX_MESSAGE, Reach, ServerFrame, Status};
use tokio::sync::OwnedSemaphorePermit;

use crate::dataset::{CatalogObject, Dataset};
use crate::engine::{Brought, Engine};
use crate::fetch::{FetchError, Fetched};
use crate::memory::{Memory, Shares};
use crate::store::Lent;
use crate::units::ChunkIndex;

/// Up to this size a chunk is copied and sent with others.
pub const SMALL: u64 = 64 << 10;
/// Bytes of small chunks that are copied by one task.
pub const BATCH_BYTES: u64 = 128 << 10;

/// How often a chunk that doesn't stay in the cache is fetched.
const TRIES: usize = 3;

/// A chunk that a peer wants.
#[derive(Debug)]
pub struct Wanted {
    /// The request's number.
    pub number: u32,
    /// Where it is.
    pub engine: Arc<Engine>,
    /// The dataset.
    pub dataset: Arc<Dataset>,
    /// The object.
    pub object: CatalogObject,
    /// The chunk.
    pub chunk: ChunkIndex,
    /// How far to go for it.
    pub reach: Reach,
    /// Its place among the connection's requests.
    pub slot: OwnedSemaphorePermit,
}

/// What is to be answered.
#[derive(Debug)]
pub enum Job {
    /// A failure, or that there is nothing.
    Told {
        /// The request's number.
        number: u32,
        /// What came of it.
        status: Status,
        /// Why.
        message: String,
        /// The request's place.
        slot: OwnedSemaphorePermit,
    },
    /// Small chunks that are here, and whether they were before.
    Small(Vec<(Wanted, bool)>),
    /// A chunk that is here.
    Large {
        /// The chunk.
        wanted: Wanted,
        /// It was here before.
        was_cached: bool,
    },
    /// A chunk that was fetched and could not be kept.
    Passing {
        /// The chunk.
        wanted: Wanted,
        /// Its bytes.
        fetched: Fetched,
    },
    /// A chunk that may be damaged.
    Verify(Wanted),
}

/// Something to send, and what is held until it is sent.
#[derive(Debug)]
pub struct Ready {
    /// What comes first: whole answers, or the header of what follows.
    pub frames: Vec<u8>,
    /// What follows.
    pub body: Body,
    slots: Vec<OwnedSemaphorePermit>,
    _memory: Option<Memory>,
}

/// What follows a header.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    None,
    /// Bytes.
    Bytes(Bytes),
    /// A part of a file.
    File(Lent),
}

impl Wanted {
    /// Bytes of the chunk.
    pub fn length(&self) -> u64 {
        self.chunk.range(self.object.stored.size).length
    }

    /// Whether it is in the cache.
    pub fn is_here(&self) -> bool {
        self.engine.store().has(&self.object.stored.id, self.chunk)
    }

    /// Something else than the chunk.
    pub fn told(self, status: Status, message: String) -> Job {
        Job::Told { number: self.number, status, message, slot: self.slot }
    }

    fn failed(self, error: &FetchError) -> Ready {
        told(self.number, error.to_peer(), &error.to_string(), self.slot)
    }

    fn header(&self, crc: u32, was_cached: bool) -> [u8; HEADER_BYTES] {
        let (number, length) = (self.number, self.length() as u32);
        ServerFrame::Answer(Answer { number, status: Status::Chunk, was_cached, length, crc }).encode()
    }

    fn passing(self, fetched: Fetched) -> Ready {
        let Some(bytes) = fetched.bytes else {
            return self.failed(&FetchError::internal("a chunk that is not kept has no bytes"));
        };
        Ready {
            frames: self.header(fetched.crc, fetched.was_cached).to_vec(),
            body: Body::Bytes(bytes),
            slots: vec![self.slot],
            _memory: Some(fetched.memory),
        }
    }
}

/// Makes an answer ready.
pub async fn prepare(memory: &Shares, job: Job) -> Ready {
    match job {
        Job::Told { number, status, message, slot } => told(number, status, &message, slot),
        Job::Small(wanted) => small(memory, wanted).await,
        Job::Large { wanted, was_cached } => lent(wanted, was_cached).await,
        Job::Passing { wanted, fetched } => wanted.passing(fetched),
        Job::Verify(wanted) => verify(memory, wanted).await,
    }
}

fn told(number: u32, status: Status, message: &str, slot: OwnedSemaphorePermit) -> Ready {
    let message = message.get(..message.floor_char_boundary(MAX_MESSAGE)).unwrap_or_default();
    let message = if status == Status::Lacking || status == Status::Intact { "" } else { message };
    let length = message.len() as u32;
    let mut frames =
        ServerFrame::Answer(Answer { number, status, was_cached: false, length, crc: 0 }).encode().to_vec();
    frames.extend_from_slice(message.as_bytes());
    Ready { frames, body: Body::None, slots: vec![slot], _memory: None }
}

async fn lent(wanted: Wanted, mut was_cached: bool) -> Ready {
    for _ in 0..TRIES {
        match wanted.engine.store().lend(&wanted.object.stored, wanted.chunk).await {
            Ok(Some(lent)) => {
                let frames = wanted.header(lent.crc, was_cached).to_vec();
                return Ready { frames, body: Body::File(lent), slots: vec![wanted.slot], _memory: None };
            }
            Ok(None) if wanted.reach == Reach::Cache => {
                return told(wanted.number, Status::Lacking, "", wanted.slot);
            }
            Ok(None) => {}
            Err(error) => return wanted.failed(&error.into()),
        }
        // It was evicted, or found damaged, between two looks.
        match wanted.engine.bring_for_peer(&wanted.dataset, &wanted.object, wanted.chunk, wanted.reach).await {
            Ok(Brought::Kept { was_cached: was }) => was_cached = was,
            Ok(Brought::Passing(fetched)) => return wanted.passing(fetched),
            Err(error) => return wanted.failed(&error),
        }
    }
    let message = format!("object {} does not stay in the cache", wanted.object.stored.id);
    wanted.failed(&FetchError::internal(message))
}

async fn small(memory: &Shares, all: Vec<(Wanted, bool)>) -> Ready {
    let length: u64 = all.iter().map(|(wanted, _)| wanted.length() + HEADER_BYTES as u64).sum();
    let memory = memory.to_peers.reserve(length).await;
    let copied = tokio::task::spawn_blocking(move || {
        let mut frames = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        let (mut slots, mut gone) = (Vec::with_capacity(all.len()), Vec::new());
        for (wanted, was_cached) in all {
            let begin = frames.len();
            frames.extend([0; HEADER_BYTES]);
            match wanted.engine.store().copy_chunk(&wanted.object.stored, wanted.chunk, &mut frames) {
                Ok(Some(crc)) => {
                    if let Some(header) = frames.get_mut(begin..begin + HEADER_BYTES) {
                        header.copy_from_slice(&wanted.header(crc, was_cached));
                    }
                    slots.push(wanted.slot);
                }
                other => {
                    frames.truncate(begin);
                    gone.push((wanted, other));
                }
            }
        }
        (frames, slots, gone)
    });
    let Ok((mut frames, mut slots, gone)) = copied.await else {
        // The requests' slots are free; who asked hears nothing and asks another node.
        tracing::error!("copying small objects for a peer panicked");
        return Ready { frames: Vec::new(), body: Body::None, slots: Vec::new(), _memory: None };
    };
    for (wanted, why) in gone {
        let ready = match why {
            Err(error) => wanted.failed(&error.into()),
            Ok(_) => again(wanted).await,
        };
        frames.extend(ready.frames);
        if let Body::Bytes(bytes) = ready.body {
            frames.extend_from_slice(&bytes);
        }
        slots.extend(ready.slots);
    }
    Ready { frames, body: Body::None, slots, _memory: memory }
}

/// A small chunk that was evicted, or found damaged, between two looks.
async fn again(wanted: Wanted) -> Ready {
    if wanted.reach == Reach::Cache {
        return told(wanted.number, Status::Lacking, "", wanted.slot);
    }
    for _ in 0..TRIES {
        match wanted.engine.bring_for_peer(&wanted.dataset, &wanted.object, wanted.chunk, wanted.reach).await {
            Ok(Brought::Kept { was_cached }) => {
                let (store, stored, chunk) = (Arc::clone(wanted.engine.store()), wanted.object.stored, wanted.chunk);
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = Vec::new();
                    store.copy_chunk(&stored, chunk, &mut bytes).map(|crc| crc.map(|crc| (bytes, crc)))
                });
                if let Ok(Ok(Some((bytes, crc)))) = read.await {
                    let frames = wanted.header(crc, was_cached).to_vec();
                    let (body, slots) = (Body::Bytes(bytes.into()), vec![wanted.slot]);
                    return Ready { frames, body, slots, _memory: None };
                }
            }
            Ok(Brought::Passing(fetched)) => return wanted.passing(fetched),
            Err(error) => return wanted.failed(&error),
        }
    }
    let message = format!("object {} does not stay in the cache", wanted.object.stored.id);
    wanted.failed(&FetchError::internal(message))
}

/// Reads a chunk whose receiver got other bytes, which drops it when it is damaged here.
async fn verify(memory: &Shares, wanted: Wanted) -> Ready {
    let _memory = memory.to_peers.reserve(CHUNK_BYTES).await;
    match wanted.engine.store().read_chunk(&wanted.object.stored, wanted.chunk).await {
        Ok(Some(_)) => told(wanted.number, Status::Intact, "", wanted.slot),
        Ok(None) => told(wanted.number, Status::Lacking, "", wanted.slot),
        Err(error) => wanted.failed(&error.into()),
    }
}
