//! What a failed request means: S3's error answers and the HTTP client's errors, sorted into reasons with messages that say what to do.

use std::error::Error;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use reqwest::Response;
use serde::Deserialize;

use crate::problem::Reason;
use crate::source::SourceError;
use crate::source::location::S3Location;

/// Longest error answer that is read.
const MAX_ERROR_BYTES: usize = 64 << 10;

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ErrorAnswer {
    code: String,
    message: String,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A page of a bucket's listing.
    Listing,
    /// An object.
    Object,
}

/// No answer came.
pub(super) fn unanswered(what: &str, error: &reqwest::Error) -> SourceError {
    let cause = chain(error);
    if let Some(advice) = tls_advice(error) {
        return SourceError::permanent(
            Reason::EndpointUnreachable,
            format!("{what}: no secure connection to the endpoint ({cause}); {advice}"),
        );
    }
    if error.is_connect() || error.is_timeout() {
        return SourceError::transient(
            Reason::EndpointUnreachable,
            format!(
                "{what}: the endpoint can't be reached ({cause}); check the source's endpoint and the network from the cache nodes"
            ),
        );
    }
    if error.is_builder() {
        return SourceError::permanent(Reason::InvalidSource, format!("{what}: {cause}"));
    }
    SourceError::transient(
        Reason::SourceError,
        format!(
            "{what}: no usable answer ({cause}); it is asked again. If this goes on, check that the endpoint is that of an S3 server"
        ),
    )
}

/// What to do about an endpoint that can't show who it is, or speaks no TLS. Asking again does not mend that.
fn tls_advice(error: &reqwest::Error) -> Option<&'static str> {
    use rustls::{CertificateError, Error as Tls};
    let tls = tls_error(error)?;
    Some(match tls {
        Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired: renew it"
        }
        Tls::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: check the clocks"
        }
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another host: correct the source's endpoint or the certificate",
        Tls::InvalidCertificate(_) => {
            "its certificate is signed by nobody whom this node trusts: install its issuer's certificate on the cache nodes"
        }
        Tls::InvalidMessage(_) => "it does not speak TLS: write http:// in the source's endpoint, or its TLS port",
        // An alert, a lost connection: may pass.
        _ => return None,
    })
}

/// The TLS error that a failed request was caused by. It hides in I/O errors, whose own `source` skips what they wrap.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref() {
            return Some(tls);
        }
        let wrapped = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| cause.source());
    }
    None
}

/// An answer broke off.
pub(super) fn broken_off(what: &str, error: &reqwest::Error) -> SourceError {
    SourceError::transient(
        Reason::SourceError,
        format!(
            "{what}: the answer broke off ({}); it is asked again. If this goes on, check the source and the network to it",
            chain(error)
        ),
    )
}

/// The answer is an error.
pub(super) async fn refused(what: &str, target: Target, location: &S3Location, response: Response) -> SourceError {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let region = response.headers().get("x-amz-bucket-region").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let answer = read_answer(response).await;
    classify(what, target, location, status, &answer, region.as_deref()).with_retry_after(retry_after)
}

fn classify(
    what: &str,
    target: Target,
    location: &S3Location,
    status: StatusCode,
    answer: &ErrorAnswer,
    region: Option<&str>,
) -> SourceError {
    let S3Location { bucket, endpoint, .. } = location;
    let said = match (answer.code.as_str(), answer.message.as_str()) {
        ("", _) => status.to_string(),
        (code, "") => format!("{status}, {code}"),
        (code, message) => format!("{status}, {code}: {message}"),
    };
    if let Some(region) = region
        && region != location.region
        && (status.is_redirection() || status == StatusCode::BAD_REQUEST || status == StatusCode::FORBIDDEN)
    {
        return SourceError::permanent(
            Reason::InvalidSource,
            format!(
                "{what}: the bucket is in region {region}, not {} ({said}); set the source's region",
                location.region
            ),
        );
    }
    match (status, answer.code.as_str()) {
        (_, "NoSuchBucket") => SourceError::permanent(
            Reason::BucketNotFound,
            format!("{what}: bucket {bucket:?} does not exist at {endpoint} ({said}); create it or correct the source's url"),
        ),
        (_, "InvalidBucketName") => SourceError::permanent(
            Reason::InvalidSource,
            format!("{what}: {bucket:?} is no valid bucket name ({said}); correct the source's url"),
        ),
        (_, "RequestTimeTooSkewed") => SourceError::permanent(
            Reason::AccessDenied,
            format!("{what}: this node's clock is wrong ({said}); synchronise it"),
        ),
        (_, "AuthorizationHeaderMalformed") => SourceError::permanent(
            Reason::InvalidSource,
            format!("{what}: the request is not signed for the right region ({said}); set the source's region"),
        ),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)
        // The last is versitygw's word for an unknown access key, which it says with 404.
        | (
            _,
            "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken"
            | "XAdminUserNotFound",
        ) => {
            SourceError::permanent(
                Reason::AccessDenied,
                format!("{what}: access denied ({said}); check the source's credentials and what they may do"),
            )
        }
        (StatusCode::PRECONDITION_FAILED, _) => SourceError::permanent(
            Reason::ObjectChanged,
            format!("{what}: the object has changed since the catalog was made ({said}); delete the Dataset and create it anew to see what is there now"),
        ),
        (StatusCode::RANGE_NOT_SATISFIABLE, _) => SourceError::permanent(
            Reason::ObjectChanged,
            format!("{what}: the object is shorter than when the catalog was made ({said}); delete the Dataset and create it anew to see what is there now"),
        ),
        (StatusCode::NOT_FOUND, _) if target == Target::Listing => SourceError::permanent(
            Reason::InvalidSource,
            format!("{what}: not found ({said}); check that the source's endpoint is that of an S3 server"),
        ),
        (StatusCode::NOT_FOUND, _) => SourceError::permanent(
            Reason::ObjectNotFound,
            format!("{what}: the object is gone ({said}); delete the Dataset and create it anew to see what is there now"),
        ),
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) | (_, "SlowDown") => SourceError::overload(
            format!("{what}: the source is overloaded ({said}); it is asked again, with fewer requests at once"),
        ),
        (StatusCode::REQUEST_TIMEOUT, _) | (_, "RequestTimeout") => {
            SourceError::transient(Reason::SourceError, format!("{what}: the source lost the request ({said}); it is asked again"))
        }
        (status, _) if status.is_server_error() => {
            SourceError::transient(Reason::SourceError, format!("{what}: the source fails ({said}); it is asked again"))
        }
        (status, _) if status.is_redirection() => SourceError::permanent(
            Reason::InvalidSource,
            format!("{what}: the endpoint sends us elsewhere ({said}); correct the source's endpoint or region"),
        ),
        _ => SourceError::permanent(Reason::SourceError, format!("{what}: the source refuses ({said}); check the source")),
    }
}

async fn read_answer(response: Response) -> ErrorAnswer {
    let mut body = response.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(Ok(piece)) = body.next().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_ERROR_BYTES {
            return ErrorAnswer::default();
        }
    }
    parse_answer(&bytes)
}

fn parse_answer(bytes: &[u8]) -> ErrorAnswer {
    quick_xml::de::from_reader(bytes).unwrap_or_default()
}

/// For the fuzz targets, see [`crate::fuzzing`]: a request for an object was answered so.
pub(super) fn classify_bytes(location: &S3Location, status: StatusCode, body: &[u8]) -> SourceError {
    classify("fuzzing", Target::Object, location, status, &parse_answer(body), None)
}

/// `Retry-After`: seconds, or a date, which is compared with the answer's own so that no clock here matters.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let after = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = text(header::DATE).and_then(date).unwrap_or_else(SystemTime::now);
    // The answer's date is that of a moment ago, cut to a second.
    date(after)?.duration_since(now).ok().map(|wait| wait + Duration::from_secs(1))
}

/// An error with its causes, without the URL, which the caller has named.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // "client error (Connect)": the next cause says it better.
        if causes.last() != Some(&text) && !text.starts_with("client error") {
            causes.push(text);
        }
        next = cause.source();
    }
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(status: u16, code: &str) -> (Reason, bool) {
        let location = S3Location::example();
        let answer = ErrorAnswer { code: code.to_owned(), message: "says why".to_owned() };
        let error = classify(
            "reading s3://b/k",
            Target::Object,
            &location,
            StatusCode::from_u16(status).unwrap(),
            &answer,
            None,
        );
        assert!(error.to_string().contains("says why") || code.is_empty(), "{error}");
        (error.reason(), error.is_transient())
    }

    #[test]
    fn each_refusal_has_its_reason() {
        assert_eq!(reason(404, "NoSuchBucket"), (Reason::BucketNotFound, false));
        assert_eq!(reason(404, "NoSuchKey"), (Reason::ObjectNotFound, false));
        assert_eq!(reason(404, "XAdminUserNotFound"), (Reason::AccessDenied, false));
        assert_eq!(reason(403, "SignatureDoesNotMatch"), (Reason::AccessDenied, false));
        assert_eq!(reason(403, ""), (Reason::AccessDenied, false));
        assert_eq!(reason(400, "ExpiredToken"), (Reason::AccessDenied, false));
        assert_eq!(reason(412, "PreconditionFailed"), (Reason::ObjectChanged, false));
        assert_eq!(reason(503, "SlowDown"), (Reason::SourceError, true));
        assert_eq!(reason(429, ""), (Reason::SourceError, true));
        assert_eq!(reason(500, "InternalError"), (Reason::SourceError, true));
        assert_eq!(reason(301, "PermanentRedirect"), (Reason::InvalidSource, false));
        assert_eq!(reason(400, "Whatever"), (Reason::SourceError, false));
    }

    #[test]
    fn the_time_to_stay_away_is_read_in_both_forms() {
        let read = |retry_after: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, retry_after.parse().unwrap());
            headers.extend(date.map(|date| (header::DATE, date.parse().unwrap())));
            super::retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(read("7", None), Some(7));
        let date = Some("Sun, 06 Nov 1994 08:49:30 GMT");
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT", date), Some(8));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:07 GMT", date), None, "over already");
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT", None), None);
        assert!(read("Tue, 06 Nov 2170 08:49:37 GMT", None).is_some_and(|wait| wait > 1 << 30));
        assert_eq!(read("soon", date), None);
    }

    #[test]
    fn overload_is_told_from_failure() {
        let overload = |status: u16, code: &str| {
            let answer = ErrorAnswer { code: code.to_owned(), message: String::new() };
            let status = StatusCode::from_u16(status).unwrap();
            classify("x", Target::Object, &S3Location::example(), status, &answer, None).is_overload()
        };
        assert!(overload(503, "") && overload(429, "TooManyRequests") && overload(500, "SlowDown"));
        assert!(!overload(500, "InternalError") && !overload(408, "") && !overload(404, "NoSuchKey"));
    }

    #[test]
    fn a_bucket_of_another_region_says_which() {
        let answer = ErrorAnswer::default();
        let error = classify(
            "x",
            Target::Listing,
            &S3Location::example(),
            StatusCode::MOVED_PERMANENTLY,
            &answer,
            Some("eu-west-1"),
        );
        assert!(error.to_string().contains("eu-west-1"), "{error}");
    }
}
