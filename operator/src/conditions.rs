//! Conditions: making them, keeping their transition times, finding what changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::problem::Problem;

/// A condition's value before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One CamelCase word.
    pub reason: String,
    /// Object, cause, next step.
    pub message: String,
}

impl Verdict {
    /// It holds.
    pub fn yes(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "True", reason: reason.to_owned(), message: message.into() }
    }

    /// It does not hold.
    pub fn no(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "False", reason: reason.to_owned(), message: message.into() }
    }

    /// Nobody knows yet.
    pub fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason: reason.to_owned(), message: message.into() }
    }

    /// It does not hold because of a problem.
    pub fn problem(problem: &Problem) -> Self {
        Self::no(&problem.reason, problem.message.clone())
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.status == "True"
    }

    /// The condition of `type_`, with the transition time of the one in `old` unless the status changed.
    pub fn condition(&self, type_: &str, old: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
        let since =
            find(old, type_).filter(|old| old.status == self.status).map(|old| old.last_transition_time.clone());
        Condition {
            type_: type_.to_owned(),
            status: self.status.to_owned(),
            reason: if self.reason.is_empty() { "Unknown".to_owned() } else { self.reason.clone() },
            message: self.message.chars().take(8000).collect(),
            observed_generation: generation,
            // The API server keeps whole seconds.
            last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
        }
    }
}

/// `time` without its fraction of a second, as the API server would keep it.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The conditions of `new` whose status or reason is not that of `old`.
pub fn changed<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    new.iter()
        .filter(|new| find(old, &new.type_).is_none_or(|old| old.status != new.status || old.reason != new.reason))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = Verdict::no("Listing", "one").condition("Ready", &[], Some(1), at(100));
        let second =
            Verdict::no("AccessDenied", "two").condition("Ready", std::slice::from_ref(&first), Some(1), at(200));
        assert_eq!(second.last_transition_time.0, at(100));
        let third = Verdict::yes("Ready", "three").condition("Ready", std::slice::from_ref(&second), Some(1), at(300));
        assert_eq!(third.last_transition_time.0, at(300));
        assert_eq!(changed(std::slice::from_ref(&first), &[second]).len(), 1);
        assert!(changed(std::slice::from_ref(&third), std::slice::from_ref(&third)).is_empty());
    }
}
