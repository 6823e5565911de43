//! What is wrong with an object, as its condition says it.

/// A reason for programs and a message for people: object, cause, next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Problem {
    /// One CamelCase word.
    pub reason: String,
    /// Object, cause, next step.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// Why a reconciliation could not be carried through; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("{action}: {source}")]
    Api {
        /// What was asked of it.
        action: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// Certificates could not be made.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// The configuration could not be written.
    #[error("rendering runtime.yaml: {0}")]
    Render(#[from] serde_yaml::Error),
    /// An object without a name, namespace or UID: it did not come from an API server.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
}

impl Error {
    /// For `map_err`: an API error with what was asked.
    pub fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { action: action.into(), source: Box::new(source) }
    }
}

/// `None` for an object that is not there.
pub fn found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
