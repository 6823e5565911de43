//! Why a chunk can't be had, as the local socket and the node API tell it.

use forebay_protocol::local::FailureKind;
use forebay_protocol::transfer::Status;

use crate::dataset::{CatalogObject, Dataset};
use crate::problem::Reason;
use crate::source::SourceError;
use crate::store::StoreError;

/// A failed fetch. Many may wait for one fetch, so it can be cloned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    kind: Kind,
    message: String,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No catalog on this node names the object.
    NotFound,
    /// The source's object is no longer the one of the catalog.
    Changed,
    /// The source refused, or could not be reached.
    Source,
    /// The local disk.
    Store,
}

impl FetchError {
    /// No catalog here names the object.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { kind: Kind::NotFound, message: message.into() }
    }

    /// Something that should not happen.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { kind: Kind::Store, message: message.into() }
    }

    /// The local disk.
    pub fn store(error: &StoreError) -> Self {
        Self { kind: Kind::Store, message: error.to_string() }
    }

    pub(super) fn no_source(dataset: &Dataset, object: &CatalogObject) -> Self {
        let message =
            format!("dataset {}: the source of {:?} can't be used", dataset.config.full_name(), object.version);
        Self { kind: Kind::Source, message }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// As the local socket tells it.
    pub fn to_local(&self) -> FailureKind {
        match self.kind {
            Kind::NotFound => FailureKind::NotFound,
            Kind::Changed => FailureKind::Changed,
            Kind::Source => FailureKind::Source,
            Kind::Store => FailureKind::Store,
        }
    }

    /// As a peer is told.
    pub fn to_peer(&self) -> Status {
        match self.kind {
            Kind::NotFound => Status::NotFound,
            Kind::Changed => Status::Changed,
            Kind::Source => Status::Source,
            Kind::Store => Status::Store,
        }
    }

    /// What a peer's answer means here; none when another one is to be asked instead.
    pub(super) fn from_peer(status: Status, message: &str) -> Option<Self> {
        let kind = match status {
            Status::Changed => Kind::Changed,
            Status::Source => Kind::Source,
            _ => return None,
        };
        Some(Self { kind, message: message.to_owned() })
    }
}

impl From<SourceError> for FetchError {
    fn from(error: SourceError) -> Self {
        let kind = match error.reason() {
            Reason::ObjectChanged | Reason::ObjectNotFound => Kind::Changed,
            _ => Kind::Source,
        };
        Self { kind, message: error.to_string() }
    }
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::store(&error)
    }
}
