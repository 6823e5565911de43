//! S3 as a source: our own signed requests over one HTTP client. object_store's reader is not used because it normalises keys: one key such
//! as `a//b` would fail a whole listing, and some keys could be listed but not read. Its request signer is.

mod failure;
mod list;

use std::time::Duration;

use async_trait::async_trait;
use forebay_protocol::config::Credentials;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_encode};
use reqwest::Response;

use failure::Target;

use super::checksum::{self, Checksum};
use super::location::S3Location;
use super::{Body, Listing, ObjectVersion, Source, SourceError, receiving, retry};
use crate::problem::Reason;
use crate::units::ByteRange;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest silence while a listing is awaited; reads have shorter limits of their own, see [`super::attempt`].
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// S3 ends idle connections after some 20 s; a request on one that is just being ended fails.
const IDLE: Duration = Duration::from_secs(15);

/// What SigV4 leaves as it is, see "UriEncode()" in Amazon's description of the canonical request.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const UNRESERVED_AND_SLASH: &AsciiSet = &UNRESERVED.remove(b'/');

/// A prefix of a bucket.
#[derive(Clone)]
pub struct S3Source {
    http: reqwest::Client,
    /// With connections of its own, for [`receiving`].
    bulk: reqwest::Client,
    location: S3Location,
    credential: Option<std::sync::Arc<AwsCredential>>,
}

impl std::fmt::Debug for S3Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Source").field("location", &self.location).finish_non_exhaustive()
    }
}

/// For the fuzz targets, see [`crate::fuzzing`].
pub(crate) fn parse_list_page(body: &[u8], prefix: &[u8]) -> Result<(Vec<super::Listed>, Option<String>), String> {
    list::parse(body, prefix).map(|page| (page.entries, page.next_token))
}

/// Likewise: what an error answer with this status and body is taken for.
pub(crate) fn classify_answer(location: &S3Location, status: StatusCode, body: &[u8]) -> SourceError {
    failure::classify_bytes(location, status, body)
}

impl S3Source {
    /// A source that signs with `credentials`, or asks anonymously.
    pub fn new(location: S3Location, credentials: Option<&Credentials>) -> Result<Self, SourceError> {
        let client = || {
            client(&location.endpoint)
                .map_err(|error| SourceError::permanent(Reason::InvalidSource, failure::chain(&error)))
        };
        let (http, bulk) = (client()?, client()?);
        let credential = credentials.map(check_credentials).transpose()?.map(std::sync::Arc::new);
        Ok(Self { http, bulk, location, credential })
    }

    fn url_of(&self, key: &[u8]) -> String {
        let S3Location { endpoint, bucket, .. } = &self.location;
        format!("{endpoint}/{bucket}/{}", percent_encode(key, UNRESERVED_AND_SLASH))
    }

    /// What messages call an object.
    fn name_of(&self, key: &[u8]) -> String {
        let S3Location { endpoint, bucket, .. } = &self.location;
        format!("s3://{bucket}/{} at {endpoint}", String::from_utf8_lossy(key))
    }

    async fn send(&self, what: &str, target: Target, url: &str, headers: HeaderMap) -> Result<Response, SourceError> {
        let unusable = |error: String| SourceError::permanent(Reason::InvalidSource, format!("{what}: {error}"));
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = url.parse().map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?;
        *request.headers_mut() = headers;
        if let Some(credential) = &self.credential {
            AwsAuthorizer::new(credential, "s3", &self.location.region)
                .try_authorize(&mut request, None)
                .map_err(|error| unusable(error.to_string()))?;
        }
        let headers = std::mem::take(request.headers_mut());
        let http = if receiving::is_here() { &self.bulk } else { &self.http };
        let sent = http.get(url).headers(headers).send().await;
        let response = sent.map_err(|error| failure::unanswered(what, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(failure::refused(what, target, &self.location, response).await)
    }

    async fn list_page(&self, token: Option<&str>) -> Result<list::Page, SourceError> {
        let S3Location { endpoint, bucket, prefix, .. } = &self.location;
        let what = format!("listing s3://{bucket}/{prefix} at {endpoint}");
        let mut url = format!("{endpoint}/{bucket}?encoding-type=url&list-type=2&prefix={}", strict(prefix));
        if let Some(token) = token {
            url = format!(
                "{endpoint}/{bucket}?continuation-token={}&encoding-type=url&list-type=2&prefix={}",
                strict(token),
                strict(prefix)
            );
        }
        let response = self.send(&what, Target::Listing, &url, HeaderMap::new()).await?;
        let body = response.bytes().await.map_err(|error| failure::broken_off(&what, &error))?;
        list::parse(&body, prefix.as_bytes())
            .map_err(|cause| SourceError::permanent(Reason::ListingFailed, format!("{what}: {cause}")))
    }
}

#[async_trait]
impl Source for S3Source {
    fn list(&self) -> Listing {
        let source = self.clone();
        stream::try_unfold(Some(None::<String>), move |next| {
            let source = source.clone();
            async move {
                let Some(token) = next else { return Ok(None) };
                let patience = if token.is_none() { retry::FIRST_PAGE } else { retry::FURTHER_PAGES };
                let page = retry::with_retries(patience, || source.list_page(token.as_deref())).await?;
                Ok(Some((page.entries, page.next_token.map(Some))))
            }
        })
        .boxed()
    }

    async fn get(&self, object: &ObjectVersion, range: ByteRange) -> Result<Body, SourceError> {
        let what = format!("reading {}", self.name_of(&object.key));
        let unusable = |cause: &str| SourceError::permanent(Reason::InvalidSource, format!("{what}: {cause}"));
        let mut headers = HeaderMap::new();
        let quoted = format!("\"{}\"", object.etag);
        headers.insert(header::IF_MATCH, quoted.parse().map_err(|_| unusable("its ETag can't be sent"))?);
        let whole = range.offset == 0 && range.length == object.size;
        if whole {
            let (name, value) = checksum::MODE;
            headers.insert(name, header::HeaderValue::from_static(value));
        } else {
            let value = format!("bytes={}-{}", range.offset, range.end().saturating_sub(1));
            headers.insert(header::RANGE, value.parse().map_err(|_| unusable("its range can't be sent"))?);
        }
        let response = self.send(&what, Target::Object, &self.url_of(&object.key), headers).await?;
        check_answer(&what, object, range, whole, &response)?;
        let checksum = Checksum::of_answer(response.headers()).filter(|_| whole);
        let named = what.clone();
        let body = response.bytes_stream().map_err(move |error| failure::broken_off(&what, &error)).boxed();
        Ok(match checksum {
            Some(checksum) => checksum.verify(named, body),
            None => body,
        })
    }

    fn describe(&self, object: &ObjectVersion) -> String {
        self.name_of(&object.key)
    }
}

/// A client for one endpoint. It trusts the certificates that the system trusts (or `SSL_CERT_FILE`); where there is no system, as in an image of
/// nothing but our binary, Mozilla's.
fn client(endpoint: &str) -> Result<reqwest::Client, reqwest::Error> {
    let builder = || {
        reqwest::Client::builder()
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
            // One connection a request in flight: more throughput than streams of one, and no head-of-line blocking.
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .pool_idle_timeout(IDLE)
            // Lengths, ranges and checksums are of the bytes as they are stored.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .tcp_nodelay(true)
    };
    if endpoint.starts_with("http://") {
        return builder().tls_certs_only([]).build();
    }
    builder().build().or_else(|error| {
        tracing::debug!(%error, "no certificates of the system; Mozilla's are used");
        let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        builder().tls_certs_only(bundled.filter_map(|cert| reqwest::Certificate::from_der(cert).ok())).build()
    })
}

/// Whether an answer's headers promise exactly the bytes that were asked for.
fn check_answer(
    what: &str,
    object: &ObjectVersion,
    range: ByteRange,
    whole: bool,
    response: &Response,
) -> Result<(), SourceError> {
    let changed = |cause: String| {
        Err(SourceError::permanent(
            Reason::ObjectChanged,
            format!(
                "{what}: {cause} since the catalog was made; delete the Dataset and create it anew to see what is there now"
            ),
        ))
    };
    let text = |name: header::HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(etag) = text(header::ETAG)
        && bare_etag(etag) != object.etag
    {
        return changed(format!("the object's ETag has changed from {} to {}", object.etag, bare_etag(etag)));
    }
    let expected = if whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    if response.status() != expected && !(whole && response.status() == StatusCode::PARTIAL_CONTENT) {
        let status = response.status();
        return Err(SourceError::permanent(
            Reason::SourceError,
            format!("{what}: the source answers {status} to a request for {range}; it must support ranges"),
        ));
    }
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let said = text(header::CONTENT_RANGE).unwrap_or_default();
        let Some((first, last, total)) = content_range(said) else {
            return Err(SourceError::transient(
                Reason::SourceError,
                format!("{what}: the source does not say which bytes it sends ({said:?}); it is asked again"),
            ));
        };
        if total.is_some_and(|total| total != object.size) {
            return changed(format!(
                "the object's size has changed from {} to {}",
                object.size,
                total.unwrap_or_default()
            ));
        }
        if (first, last.saturating_add(1)) != (range.offset, range.end()) {
            return Err(SourceError::transient(
                Reason::SourceError,
                format!("{what}: the source offers bytes {first}..{} for {range}; it is asked again", last + 1),
            ));
        }
    }
    if let Some(length) = response.content_length()
        && length != range.length
    {
        if whole {
            return changed(format!("the object's size has changed from {} to {length}", object.size));
        }
        return Err(SourceError::transient(
            Reason::SourceError,
            format!("{what}: the source offers {length} bytes for {range}"),
        ));
    }
    Ok(())
}

/// First byte, last byte and, unless it is `*`, the whole length.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse::<u64>().ok().filter(|last| *last < u64::MAX)?, total))
}

/// An ETag without its quotes, as catalogs keep it.
fn bare_etag(etag: &str) -> &str {
    etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag)
}

fn strict(text: &str) -> PercentEncode<'_> {
    percent_encode(text.as_bytes(), UNRESERVED)
}

/// Credentials become header values, so they must be plain text.
fn check_credentials(credentials: &Credentials) -> Result<AwsCredential, SourceError> {
    let Credentials { access_key_id, secret_access_key, session_token } = credentials;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !plain(access_key_id) || !plain(secret_access_key) || !session_token.as_deref().is_none_or(plain) {
        return Err(SourceError::permanent(
            Reason::AccessDenied,
            "the source's credentials are empty or hold blanks or line breaks; check the Secret",
        ));
    }
    Ok(AwsCredential {
        key_id: access_key_id.clone(),
        secret_key: secret_access_key.clone(),
        token: session_token.clone(),
    })
}
