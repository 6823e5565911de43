//! An error answer of an object store: status in the first two bytes, then the body.

use std::sync::LazyLock;

use forebay_cache_node::fuzzing::s3_error_answer;
use forebay_cache_node::source::location::{Location, S3Location};
use forebay_protocol::config::SourceConfig;

static LOCATION: LazyLock<S3Location> = LazyLock::new(|| {
    let config = SourceConfig { url: "s3://b/p/".to_owned(), endpoint: None, region: None, credentials: None };
    match Location::parse(&config) {
        Ok(Location::S3(s3)) => s3,
        other => panic!("{other:?}"),
    }
});

/// Every answer becomes an error with words; the server's own are in it, so they must not be endless.
pub fn run(data: &[u8]) {
    let Some((status, body)) = data.split_first_chunk::<2>() else { return };
    if let Some(error) = s3_error_answer(&LOCATION, u16::from_le_bytes(*status), body) {
        let message = error.to_string();
        assert!(message.starts_with("fuzzing: ") && message.len() < 1000 + 2 * body.len(), "{message}");
    }
}

/// The answers that S3 gives most.
pub fn seeds() -> Vec<Vec<u8>> {
    let answer = |status: u16, code: &str| {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>why</Message></Error>");
        [&status.to_le_bytes(), body.as_bytes()].concat()
    };
    vec![
        answer(404, "NoSuchKey"),
        answer(503, "SlowDown"),
        answer(301, "PermanentRedirect"),
        answer(403, "AccessDenied"),
    ]
}
