//! Why a source could not do what it was asked: a reason for the condition, a message for people, and whether trying again may help.

use std::time::Duration;

use crate::problem::{Problem, Reason};

/// A failed request to a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    reason: Reason,
    message: String,
    transient: bool,
    retry_after: Option<Duration>,
}

impl SourceError {
    /// A failure that asking again will not mend.
    pub fn permanent(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), transient: false, retry_after: None }
    }

    /// A failure that may be gone the next time.
    pub fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), transient: true, retry_after: None }
    }

    /// The same, with the time that the source asked to be left alone.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// What kind of failure it is.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        self.transient
    }

    /// How long the source asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether it tells something about one object only, not about the source's health.
    pub fn concerns_one_object(&self) -> bool {
        matches!(self.reason, Reason::ObjectChanged | Reason::ObjectNotFound)
    }

    /// As a user sees it.
    pub fn to_problem(&self) -> Problem {
        Problem::new(self.reason, self.message.clone())
    }
}
