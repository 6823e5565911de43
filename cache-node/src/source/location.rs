//! A source's URL taken apart and checked, and the identity that its objects' ids are made of.

use std::path::{Path, PathBuf};

use forebay_catalog::CatalogSource;
use forebay_protocol::config::SourceConfig;
use url::Url;

use super::SourceError;
use crate::problem::Reason;

/// A valid source location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A prefix of a bucket.
    S3(S3Location),
    /// A folder of this machine.
    File {
        /// The folder, absolute.
        root: PathBuf,
    },
}

/// A prefix of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// Scheme, host, port and path of the store, without a slash at the end.
    pub endpoint: String,
    /// The same for all ways to reach the store.
    identity: String,
    /// The bucket.
    pub bucket: String,
    /// Empty, or ends with a slash.
    pub prefix: String,
    /// What requests are signed for.
    pub region: String,
}

impl Location {
    /// Checks and takes apart a source's description.
    pub fn parse(config: &SourceConfig) -> Result<Self, SourceError> {
        if let Some(rest) = config.url.strip_prefix("s3://") {
            return S3Location::parse(rest, config).map(Self::S3);
        }
        if config.url.starts_with("file://") {
            let root = Url::parse(&config.url).ok().and_then(|url| url.to_file_path().ok());
            return root.map(|root| Self::File { root: tidy(&root) }).ok_or_else(|| {
                invalid(format!(
                    "source url {:?}: not a file URL with an absolute path; write file:///folder/",
                    config.url
                ))
            });
        }
        Err(invalid(format!("source url {:?}: its scheme is not supported; use s3:// or file://", config.url)))
    }

    /// As catalogs name it.
    pub fn catalog_source(&self, mount_path: &str) -> CatalogSource {
        match self {
            Self::S3(s3) => CatalogSource {
                mount_path: mount_path.to_owned(),
                url: format!("s3://{}", s3.bucket),
                identity: s3.identity.clone(),
                prefix: s3.prefix.clone().into_bytes(),
            },
            Self::File { root } => {
                let url = format!("file://{}", root.display());
                CatalogSource { mount_path: mount_path.to_owned(), url: url.clone(), identity: url, prefix: Vec::new() }
            }
        }
    }
}

impl S3Location {
    /// Some location, for tests of what is around it.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        let config = SourceConfig {
            url: "s3://b/p/".to_owned(),
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            region: None,
            credentials: None,
        };
        match Location::parse(&config) {
            Ok(Location::S3(s3)) => s3,
            other => panic!("{other:?}"),
        }
    }

    fn parse(rest: &str, config: &SourceConfig) -> Result<Self, SourceError> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
            return Err(invalid(format!(
                "source url {:?}: no valid bucket name; write s3://bucket/prefix/",
                config.url
            )));
        }
        let mut prefix = prefix.to_owned();
        if !prefix.is_empty() && !prefix.ends_with('/') {
            prefix.push('/');
        }
        let region =
            config.region.clone().filter(|region| !region.is_empty()).unwrap_or_else(|| "us-east-1".to_owned());
        if !region.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(invalid(format!("source region {region:?}: not a region's name")));
        }
        let (endpoint, store) =
            if let Some(endpoint) = config.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
                let endpoint = check_endpoint(endpoint)?;
                (endpoint.clone(), endpoint)
            } else {
                // Every region's endpoint leads to the same buckets.
                (format!("https://s3.{region}.amazonaws.com"), "https://s3.amazonaws.com".to_owned())
            };
        Ok(Self { endpoint, identity: format!("{store}/{bucket}"), bucket: bucket.to_owned(), prefix, region })
    }
}

fn check_endpoint(endpoint: &str) -> Result<String, SourceError> {
    let refuse = |cause: &str| invalid(format!("source endpoint {endpoint:?}: {cause}; write https://host[:port]"));
    let url = Url::parse(endpoint).map_err(|error| refuse(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("its scheme is neither http nor https"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(refuse("it names no host"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it has more than scheme, host, port and path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

fn invalid(message: String) -> SourceError {
    SourceError::permanent(Reason::InvalidSource, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str, endpoint: Option<&str>) -> SourceConfig {
        SourceConfig { url: url.to_owned(), endpoint: endpoint.map(str::to_owned), region: None, credentials: None }
    }

    #[test]
    fn datasets_over_one_bucket_share_an_identity_whatever_their_prefix_and_region() {
        let mut a = config("s3://b/x", None);
        let b = config("s3://b", None);
        a.region = Some("eu-central-1".to_owned());
        let (a, b) =
            (Location::parse(&a).unwrap().catalog_source("/"), Location::parse(&b).unwrap().catalog_source("/y"));
        assert_eq!(a.identity, b.identity);
        assert_eq!(a.prefix, b"x/");
        let other = Location::parse(&config("s3://b", Some("http://127.0.0.1:7070/"))).unwrap().catalog_source("/");
        assert_eq!(other.identity, "http://127.0.0.1:7070/b");
    }

    #[test]
    fn what_can_not_be_used_says_what_to_write() {
        for (url, endpoint) in [
            ("gs://b", None),
            ("s3://", None),
            ("s3://b ucket/", None),
            ("file://relative/x", None),
            ("s3://b", Some("ftp://h")),
            ("s3://b", Some("host:9000")),
            ("s3://b", Some("http://h?x=y")),
            ("s3://b", Some("nonsense")),
        ] {
            let error = Location::parse(&config(url, endpoint)).unwrap_err();
            assert_eq!(error.reason(), Reason::InvalidSource, "{error}");
            assert!(error.to_string().contains("write") || error.to_string().contains("use "), "{error}");
        }
    }

    #[test]
    fn a_file_url_is_decoded() {
        assert_eq!(
            Location::parse(&config("file:///a/b%20c/", None)).unwrap(),
            Location::File { root: PathBuf::from("/a/b c") }
        );
    }
}
