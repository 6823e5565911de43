//! Problems as users see them: a `CamelCase` reason and a message that names the object, the cause, and the next step. The operator copies
//! them into a Dataset's conditions as they are.

use std::fmt;

use forebay_protocol::node;

/// Why something a user asked for is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of problem it is.
    pub reason: Reason,
    /// Object, cause, next step.
    pub message: String,
}

/// Kinds of problems; their names are the conditions' reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The bucket or folder does not exist.
    BucketNotFound,
    /// The credentials are wrong, or may not do what is needed.
    AccessDenied,
    /// Nothing answers at the endpoint.
    EndpointUnreachable,
    /// The source's description can't be used.
    InvalidSource,
    /// An object is no longer the one of the catalog.
    ObjectChanged,
    /// An object of the catalog is gone.
    ObjectNotFound,
    /// The source fails to answer.
    SourceError,
    /// The source's listing makes no sense.
    ListingFailed,
    /// The catalog found is not the one that was published.
    CatalogMismatch,
    /// Another node is to make the catalog, and it is not here yet.
    WaitingForCatalog,
    /// The node's own disk fails.
    StoreFailed,
    /// The cache is full of what may not be evicted for this.
    NoRoom,
    /// Another node has not taken all that was handed over to it.
    HandingOver,
    /// Another node's config says that this one keeps something, and this one's does not.
    NotOwner,
    /// Another node does not answer, or not with what was asked for.
    PeerUnavailable,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// As the node API says it.
    pub fn to_proto(&self) -> node::Problem {
        node::Problem { reason: self.reason.to_string(), message: self.message.clone() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
