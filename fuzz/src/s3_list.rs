//! A page of ListObjectsV2, from a store that may be anything that answers HTTP.

use forebay_cache_node::fuzzing::s3_list_page;
use forebay_cache_node::source::Listed;

const PREFIX: &[u8] = b"p/";

/// A page has only entries that can be asked for: with a graphic ETag, below nothing odd, and a next page that has a name.
pub fn run(data: &[u8]) {
    let Ok((entries, next)) = s3_list_page(data, PREFIX) else { return };
    assert!(next.is_none_or(|token| !token.is_empty()));
    for entry in entries {
        match entry {
            Listed::Object { key, modified, etag, .. } => {
                assert!(key != PREFIX && modified.nanos < 1_000_000_000);
                assert!(!etag.is_empty() && etag.bytes().all(|byte| byte.is_ascii_graphic()));
            }
            Listed::Folder { key } => assert!(key != PREFIX),
            Listed::Unusable { reason, .. } => assert!(!reason.is_empty()),
        }
    }
}

/// A plain page and an encoded one that goes on.
pub fn seeds() -> Vec<Vec<u8>> {
    let contents = "<Contents><Key>p/a%2Bb</Key><LastModified>2026-11-23T14:03:59.5Z</LastModified><ETag>&quot;e1&quot;</ETag>\
                    <Size>5</Size><StorageClass>STANDARD</StorageClass></Contents>";
    let page = |rest: &str| {
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{contents}{rest}</ListBucketResult>")
            .into_bytes()
    };
    vec![
        page("<IsTruncated>false</IsTruncated>"),
        page(
            "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>",
        ),
    ]
}
