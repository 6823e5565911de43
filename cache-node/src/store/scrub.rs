//! The scrub: reads everything that is here in a stable order and verifies it, so that damage is found, and repaired, while somebody still has the right
//! bytes, also in objects that the kernel reads without asking this process. Paced; goes on after a restart where it was; rests while the disk fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;

use super::slot::Body;
use super::{Store, Verdict, blocking};
use crate::units::{ChunkIndex, chunk_count};

/// How fast to scrub.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Everything is read once in this time, ...
    pub period: Duration,
    /// ... but no more than so many bytes a second are read.
    pub bytes_per_second: u64,
}

impl Default for Pace {
    /// Once a week, at most 64 MiB/s: latent errors of disks are found long before a second copy is likely to fail too, and a disk that serves
    /// readers at gigabytes a second does not notice.
    fn default() -> Self {
        Self { period: Duration::from_secs(7 * 24 * 3600), bytes_per_second: 64 << 20 }
    }
}

/// Shorter sleeps are added up, ...
const SHORTEST_NAP: Duration = Duration::from_millis(10);

/// ... and a longer one is looked at again, since what is here may have become more.
const LONGEST_NAP: Duration = Duration::from_secs(10);

/// Between two rounds at least, and between two looks at a disk that fails.
const REST: Duration = Duration::from_secs(1);

/// How long an object that a reader has open is left alone before it is verified all the same.
const COURTESY: Duration = Duration::from_secs(1);

/// How often the position is written down.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// What is done, in the order of shards and of ids in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    shard: usize,
    after: Option<ObjectId>,
}

impl Position {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let shard = words.next()?.parse().ok()?;
        let after = words.next().map(|id| Some(ObjectId::from_bytes(u128::from_str_radix(id, 16).ok()?.to_be_bytes())));
        match after {
            Some(None) => None,
            after => Some(Self { shard, after: after.flatten() }),
        }
    }

    fn text(&self) -> String {
        let after = self.after.map(|id| format!(" {:032x}", u128::from_be_bytes(*id.as_bytes())));
        format!("{}{}\n", self.shard, after.unwrap_or_default())
    }
}

impl Pace {
    /// How long so many bytes take when `total` are to be read in the period.
    fn time_for(&self, bytes: u64, total: u64) -> Duration {
        let wanted = total as f64 / self.period.as_secs_f64().max(1e-3);
        Duration::from_secs_f64(bytes as f64 / wanted.clamp(1.0, self.bytes_per_second.max(1) as f64))
    }
}

impl Store {
    /// Bytes that were read and verified in the background since the start.
    pub fn scrubbed_bytes(&self) -> u64 {
        self.scrubbed.load(Ordering::Relaxed)
    }

    /// Scrubs round after round; ends when dropped.
    pub async fn scrub(self: Arc<Self>, layout: CacheLayout, pace: Pace) {
        let path = layout.scrub_position();
        let noted = std::fs::read_to_string(&path).ok();
        let mut position = noted.and_then(|text| Position::parse(&text)).unwrap_or_default();
        loop {
            let (began, before) = (Instant::now(), self.scrubbed_bytes());
            let lost = self.scrub_round(position, &path, &pace).await;
            let bytes = self.scrubbed_bytes() - before;
            if bytes > 0 {
                tracing::info!(
                    bytes,
                    lost,
                    seconds = began.elapsed().as_secs(),
                    "the cache has been verified to its end"
                );
            }
            if bytes > 0 || position != Position::default() {
                position = Position::default();
                note(&path, position).await;
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// One round from a position to the end; how many chunks were lost.
    async fn scrub_round(self: &Arc<Self>, from: Position, path: &Path, pace: &Pace) -> u64 {
        let (mut lost, mut unslept, mut noted) = (0, 0, Instant::now());
        for shard in from.shard..self.slots.shard_count() {
            let after = from.after.filter(|_| shard == from.shard);
            let is_next = |id: &ObjectId| after.is_none_or(|after| id.as_bytes() > after.as_bytes());
            for id in self.slots.ids(shard).into_iter().filter(is_next) {
                for chunk in self.on_disk(&id) {
                    self.wait_for_a_good_moment(&id).await;
                    let (bytes, verdict) = self.scrub_chunk(id, chunk).await;
                    lost += u64::from(verdict == Verdict::Lost);
                    unslept = self.sleep_for(unslept + bytes, pace).await;
                }
                if noted.elapsed() >= NOTE_EVERY {
                    noted = Instant::now();
                    note(path, Position { shard, after: Some(id) }).await;
                }
            }
        }
        lost
    }

    /// The chunks of an object that a crash would leave.
    fn on_disk(&self, id: &ObjectId) -> Vec<ChunkIndex> {
        self.slots.lock(id).get(id).map_or(Vec::new(), |slot| match &slot.body {
            Body::Complete => (0..chunk_count(slot.size)).map(ChunkIndex).collect(),
            Body::Partial(partial) => partial.committed.iter().collect(),
        })
    }

    async fn scrub_chunk(self: &Arc<Self>, id: ObjectId, chunk: ChunkIndex) -> (u64, Verdict) {
        let this = Arc::clone(self);
        let verified = blocking(move || {
            let bytes = this.slots.lock(&id).get(&id).map_or(0, |slot| chunk.range(slot.size).length);
            Ok((bytes, this.verify_now(&id, chunk)?))
        });
        match verified.await {
            Ok((_, Verdict::Absent)) => (0, Verdict::Absent),
            Ok((bytes, verdict)) => {
                self.scrubbed.fetch_add(bytes, Ordering::Relaxed);
                (bytes, verdict)
            }
            Err(error) => {
                tracing::warn!(%id, %error, "a cached object could not be verified; the next round tries again");
                tokio::time::sleep(REST).await;
                (0, Verdict::Absent)
            }
        }
    }

    /// Sleeps as long as so many bytes are to take; how many are left to be slept for.
    async fn sleep_for(&self, bytes: u64, pace: &Pace) -> u64 {
        let began = Instant::now();
        if pace.time_for(bytes, self.used_bytes()) < SHORTEST_NAP {
            return bytes;
        }
        loop {
            let left = pace.time_for(bytes, self.used_bytes()).saturating_sub(began.elapsed());
            if left.is_zero() {
                return 0;
            }
            tokio::time::sleep(left.min(LONGEST_NAP)).await;
        }
    }

    /// Waits while the disk fails; and, for a moment, while a reader has the object open.
    async fn wait_for_a_good_moment(&self, id: &ObjectId) {
        while self.faults.writes_fail() {
            tokio::time::sleep(REST).await;
        }
        let is_leased = || self.slots.lock(id).get(id).is_some_and(|slot| slot.pins > 0);
        let patience = Instant::now() + COURTESY;
        while is_leased() && Instant::now() < patience {
            tokio::time::sleep(COURTESY / 10).await;
        }
    }
}

/// Writes the position down; a loss costs no more than reading something twice.
async fn note(path: &Path, position: Position) {
    let path: PathBuf = path.to_owned();
    let noted = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let draft = path.with_extension("new");
        std::fs::write(&draft, position.text())?;
        std::fs::rename(draft, path)
    });
    if let Ok(Err(error)) = noted.await {
        tracing::debug!(%error, "the scrub's position could not be written down");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cache_takes_the_period_and_a_large_one_has_a_limit() {
        let pace = Pace { period: Duration::from_secs(1000), bytes_per_second: 1 << 20 };
        assert_eq!(pace.time_for(1 << 20, 100 << 20), Duration::from_secs(10));
        assert_eq!(pace.time_for(1 << 20, 1 << 40), Duration::from_secs(1));
        assert_eq!(pace.time_for(0, 0), Duration::ZERO);
    }

    #[test]
    fn a_position_reads_back_as_it_was_written() {
        let some = Position { shard: 7, after: Some(ObjectId::from_bytes([0xab; 16])) };
        for position in [some, Position { shard: 63, after: None }] {
            assert_eq!(Position::parse(&position.text()), Some(position));
        }
        assert_eq!(Position::parse("7 nonsense"), None);
        assert_eq!(Position::parse(""), None);
    }
}
