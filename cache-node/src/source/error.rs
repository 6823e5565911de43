//! Why a source could not do what it was asked: a reason for the condition, a message for people, and whether trying again may help.

use std::time::Duration;

use crate::problem::{Problem, Reason};

/// A failed request to a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    reason: Reason,
    message: String,
    class: Class,
    retry_after: Option<Duration>,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Asking again will not mend it.
    Permanent,
    /// It may be gone the next time.
    Transient,
    /// The same, and the source has too much to do.
    Overload,
    /// The same, and what came is not what the source itself says it is.
    Damaged,
}

impl SourceError {
    fn new(reason: Reason, class: Class, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class, retry_after: None }
    }

    /// A failure that asking again will not mend.
    pub fn permanent(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, Class::Permanent, message)
    }

    /// A failure that may be gone the next time.
    pub fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, Class::Transient, message)
    }

    /// The source has too much to do; it is asked again, and less of it at once.
    pub fn overload(message: impl Into<String>) -> Self {
        Self::new(Reason::SourceError, Class::Overload, message)
    }

    /// The bytes do not match the source's own checksum; they are asked for again.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(Reason::SourceError, Class::Damaged, message)
    }

    /// The same, with the time that the source asked to be left alone.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// The same, with more to say.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }

    /// What kind of failure it is.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        self.class != Class::Permanent
    }

    /// Whether the source has too much to do.
    pub fn is_overload(&self) -> bool {
        self.class == Class::Overload
    }

    /// Whether bytes came that do not match the source's own checksum.
    pub fn is_damage(&self) -> bool {
        self.class == Class::Damaged
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
