//! A source in use: one mount's source with its health, its counters, its limit of requests at once, and its second requests for slow ones.
//! What goes over the line goes through here. A read that waits to try again holds nothing that another one could use.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use forebay_catalog::CatalogSource;
use forebay_protocol::config::{MountConfig, SourceConfig};
use forebay_protocol::node;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::attempt::{self, Hold, Progress};
use super::file::FileSource;
use super::hedge::{Hedger, Verdict};
use super::limit::{Limiter, Turn};
use super::location::Location;
use super::retry::{self, Patience};
use super::s3::S3Source;
use super::{Body, Listing, ObjectVersion, Source, SourceError};
use crate::memory::Buffers;
use crate::metrics::{Counter, Metrics};
use crate::problem::Problem;
use crate::units::ByteRange;

/// A mount's source, ready to be used.
#[derive(Debug)]
pub struct SourceSlot {
    mount: String,
    url: String,
    catalog_source: CatalogSource,
    source: Arc<dyn Source>,
    counters: SourceCounters,
    limiter: Arc<Limiter>,
    hedger: Mutex<Hedger>,
    health: Mutex<Health>,
}

/// Where a source's bytes are counted.
#[derive(Clone, Debug)]
pub struct SourceCounters {
    /// For the metrics.
    pub source: Counter,
    /// For the dataset's status.
    pub dataset: Arc<crate::counters::ReadCounters>,
    /// Answers that did not match the source's own checksum.
    pub damaged: Counter,
    /// Second requests whose answer was used.
    pub hedges_won: Counter,
    /// Second requests whose answer was not.
    pub hedges_lost: Counter,
}

impl SourceCounters {
    /// The counters of the source at `url`.
    pub fn new(metrics: &Metrics, url: &str, dataset: Arc<crate::counters::ReadCounters>) -> Self {
        Self {
            source: metrics.source_read_bytes(url, ""),
            dataset,
            damaged: metrics.verification_failure_counter(),
            hedges_won: metrics.hedged_requests(url, true),
            hedges_lost: metrics.hedged_requests(url, false),
        }
    }
}

/// What to do about a request that may be late.
enum Late {
    LookAgain(Duration),
    Hedge(Turn),
}

#[derive(Debug)]
struct Health {
    state: node::SourceState,
    problem: Option<Problem>,
    since: SystemTime,
}

impl SourceSlot {
    /// The source that `config` describes, or why there can be none.
    pub fn open(mount: &MountConfig, config: &SourceConfig, counters: SourceCounters) -> Result<Self, SourceError> {
        let location = Location::parse(config)?;
        let catalog_source = location.catalog_source(&mount.path);
        let (source, endpoint): (Arc<dyn Source>, String) = match location {
            Location::S3(s3) => {
                let endpoint = s3.endpoint.clone();
                (Arc::new(S3Source::new(s3, config.credentials.as_ref())?), endpoint)
            }
            Location::File { root } => {
                let endpoint = root.display().to_string();
                (Arc::new(FileSource::new(root)), endpoint)
            }
        };
        let health = Health { state: node::SourceState::Unknown, problem: None, since: SystemTime::now() };
        Ok(Self {
            mount: mount.path.clone(),
            url: config.url.clone(),
            catalog_source,
            source,
            counters,
            limiter: Limiter::of(&endpoint),
            hedger: Mutex::default(),
            health: Mutex::new(health),
        })
    }

    /// As catalogs name it.
    pub fn catalog_source(&self) -> &CatalogSource {
        &self.catalog_source
    }

    /// Everything it has.
    pub fn list(&self) -> Listing {
        self.source.list()
    }

    /// Exactly the bytes of a range, or an error; tried again as patience allows.
    pub async fn read(
        &self,
        patience: Patience,
        object: &ObjectVersion,
        range: ByteRange,
    ) -> Result<Bytes, SourceError> {
        let (bytes, ()) = self.read_holding(patience, object, range, &Buffers::fresh(), || async { Some(()) }).await?;
        Ok(bytes)
    }

    /// The same. `hold` gives what must be held while the bytes are in memory, such as a share of it; it is asked for each time an answer
    /// begins, and let go when that try fails. None: the node is stopping. The bytes may be gathered in one of `buffers`.
    pub async fn read_holding<H, F>(
        &self,
        patience: Patience,
        object: &ObjectVersion,
        range: ByteRange,
        buffers: &Buffers,
        hold: impl Fn() -> F,
    ) -> Result<(Bytes, H), SourceError>
    where
        H: Hold,
        F: Future<Output = Option<H>>,
    {
        let result = retry::with_retries(patience, || async {
            let result = self.read_hedged(object, range, buffers, &hold).await;
            if result.as_ref().is_err_and(SourceError::is_damage) {
                self.counters.damaged.add(1);
            }
            result
        });
        let result = result.await;
        self.observe(result.as_ref().err());
        result
    }

    /// One try: a request, and when it is late a second one. The first whole answer wins, the other is dropped.
    async fn read_hedged<H, F>(
        &self,
        object: &ObjectVersion,
        range: ByteRange,
        buffers: &Buffers,
        hold: &impl Fn() -> F,
    ) -> Result<(Bytes, H), SourceError>
    where
        H: Hold,
        F: Future<Output = Option<H>>,
    {
        let counted = Counted { source: self.source.as_ref(), counters: &self.counters };
        let turn = self.limiter.turn().await;
        let (began, progress) = (Instant::now(), Progress::default());
        let mut look_at = began + self.hedger.lock().begin(range.length);
        let first = within(&turn, attempt::read(&counted, object, range, &progress, buffers, hold));
        tokio::pin!(first);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut first => break result,
                () = sleep_until(look_at) => {}
            }
            let turn = match self.look(&turn, range.length, began.elapsed(), progress.received()) {
                Late::LookAgain(age) => {
                    look_at = began + age;
                    continue;
                }
                Late::Hedge(turn) => turn,
            };
            // Only what is free right now: nobody else waits longer because of a second request.
            let hold = || async { hold().now_or_never().flatten() };
            let progress = Progress::default();
            let second = within(&turn, attempt::read(&counted, object, range, &progress, buffers, hold));
            tokio::pin!(second);
            let (result, won) = first_good(first, second).await;
            let counters = &self.counters;
            if won { &counters.hedges_won } else { &counters.hedges_lost }.add(1);
            break result;
        };
        if result.is_ok() {
            self.hedger.lock().end(range.length, began.elapsed());
        }
        result
    }

    /// Whether a request that is so old and has brought so much gets a second one beside it. If it may, it is no longer one of those that are under
    /// way at once: where only few may be, some that are stuck would keep all others waiting.
    fn look(&self, turn: &Turn, length: u64, age: Duration, received: u64) -> Late {
        let mut hedger = self.hedger.lock();
        match hedger.look(length, age, received) {
            Verdict::LookAgain(age) => Late::LookAgain(age),
            Verdict::Hedge => {
                turn.step_aside();
                match self.limiter.try_turn() {
                    // It may be stuck as well.
                    Some(turn) if turn.step_aside() && hedger.spend(length) => Late::Hedge(turn),
                    _ => Late::LookAgain(age * 2),
                }
            }
        }
    }

    /// Takes note of how a request went.
    pub fn observe(&self, error: Option<&SourceError>) {
        let (state, problem) = match error {
            Some(error) if !error.concerns_one_object() => (node::SourceState::Unhealthy, Some(error.to_problem())),
            _ => (node::SourceState::Active, None),
        };
        let mut health = self.health.lock();
        if health.state != state {
            if let Some(problem) = &problem {
                tracing::warn!(url = self.url, %problem, "the source is unhealthy");
            } else {
                tracing::info!(url = self.url, "the source serves");
            }
            *health = Health { state, problem, since: SystemTime::now() };
        } else if health.problem != problem {
            health.problem = problem;
        }
    }

    /// For the status.
    pub fn status(&self) -> node::SourceStatus {
        let health = self.health.lock();
        let since = health.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        node::SourceStatus {
            mount: self.mount.clone(),
            url: self.url.clone(),
            state: health.state.into(),
            problem: health.problem.as_ref().map(Problem::to_proto),
            since_unix_seconds: since.as_secs() as i64,
        }
    }
}

/// A request that has its turn. What its answer says of the endpoint's load decides how many turns there are after it.
async fn within<T>(turn: &Turn, request: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    let result = request.await;
    match &result {
        Ok(_) => turn.succeeded(),
        Err(error) if error.is_overload() => turn.overloaded(),
        Err(_) => turn.give_back(),
    }
    result
}

/// The first success, else the failure of `first`; and whether it is that of `second`.
async fn first_good<T>(
    mut first: impl Future<Output = Result<T, SourceError>> + Unpin,
    mut second: impl Future<Output = Result<T, SourceError>> + Unpin,
) -> (Result<T, SourceError>, bool) {
    tokio::select! {
        biased;
        result = &mut first => match result {
            Ok(value) => (Ok(value), false),
            Err(error) => match second.await {
                Ok(value) => (Ok(value), true),
                Err(_) => (Err(error), false),
            },
        },
        result = &mut second => match result {
            Ok(value) => (Ok(value), true),
            Err(_) => (first.await, false),
        },
    }
}

/// Counts what a source sends, also what is thrown away afterwards: it has crossed the line.
#[derive(Debug)]
struct Counted<'a> {
    source: &'a dyn Source,
    counters: &'a SourceCounters,
}

#[async_trait::async_trait]
impl Source for Counted<'_> {
    fn list(&self) -> Listing {
        self.source.list()
    }

    async fn get(&self, object: &ObjectVersion, range: ByteRange) -> Result<Body, SourceError> {
        let counters = self.counters.clone();
        let body = self.source.get(object, range).await?;
        Ok(body
            .inspect(move |piece| {
                if let Ok(piece) = piece {
                    let bytes = piece.len() as u64;
                    counters.source.add(bytes);
                    counters.dataset.add_source(bytes);
                }
            })
            .boxed())
    }

    fn describe(&self, object: &ObjectVersion) -> String {
        self.source.describe(object)
    }
}
