//! A source in use: one mount's source with its health and its byte counter. What goes over the line goes through here.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use forebay_catalog::CatalogSource;
use forebay_protocol::config::{MountConfig, SourceConfig};
use forebay_protocol::node;
use futures::StreamExt;
use parking_lot::Mutex;

use super::file::FileSource;
use super::location::Location;
use super::retry::{self, Patience};
use super::s3::S3Source;
use super::{Body, Listing, ObjectVersion, Source, SourceError};
use crate::metrics::Counter;
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
    health: Mutex<Health>,
}

/// Where a source's bytes are counted.
#[derive(Clone, Debug)]
pub struct SourceCounters {
    /// For the metrics.
    pub source: Counter,
    /// For the dataset's status.
    pub dataset: Arc<crate::counters::ReadCounters>,
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
        let source: Arc<dyn Source> = match location {
            Location::S3(s3) => Arc::new(S3Source::new(s3, config.credentials.as_ref())?),
            Location::File { root } => Arc::new(FileSource::new(root)),
        };
        let health = Health { state: node::SourceState::Unknown, problem: None, since: SystemTime::now() };
        Ok(Self {
            mount: mount.path.clone(),
            url: config.url.clone(),
            catalog_source,
            source,
            counters,
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
        let counted = Counted { source: self.source.as_ref(), counters: &self.counters };
        let result = retry::read_range(&counted, patience, object, range).await;
        self.observe(result.as_ref().err());
        result
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
}
