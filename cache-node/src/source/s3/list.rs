//! Pages of ListObjectsV2: the XML of an answer, taken as it is. Keys are bytes here; the catalog decides which can be files.

use forebay_catalog::Mtime;
use percent_encoding::percent_decode;
use serde::Deserialize;

use super::bare_etag;
use crate::source::Listed;

/// One page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) entries: Vec<Listed>,
    /// What to ask the next page with; none at the end.
    pub(super) next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    contents: Vec<Contents>,
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
    encoding_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    last_modified: String,
    #[serde(rename = "ETag")]
    etag: Option<String>,
    storage_class: Option<String>,
}

/// Reads a page; the error says what is wrong with it.
pub(super) fn parse(body: &[u8], prefix: &[u8]) -> Result<Page, String> {
    let text = std::str::from_utf8(body).map_err(|error| format!("the answer is not UTF-8: {error}"))?;
    let result: ListBucketResult =
        quick_xml::de::from_str(text).map_err(|error| format!("the answer is no ListBucketResult: {error}"))?;
    let next_token = match (result.is_truncated, result.next_continuation_token) {
        (true, Some(token)) if !token.is_empty() => Some(token),
        (true, _) => return Err("the answer is truncated and has no continuation token".to_owned()),
        (false, _) => None,
    };
    let encoded = result.encoding_type.as_deref() == Some("url");
    let entries = result.contents.into_iter().filter_map(|contents| listed(contents, encoded, prefix)).collect();
    Ok(Page { entries, next_token })
}

fn listed(contents: Contents, encoded: bool, prefix: &[u8]) -> Option<Listed> {
    let key = if encoded {
        // Blanks may come as `+`; a plus sign itself never does.
        percent_decode(contents.key.replace('+', " ").as_bytes()).collect()
    } else {
        contents.key.into_bytes()
    };
    if key == prefix {
        // The marker of the prefix itself is the root folder.
        return None;
    }
    if contents.size == 0
        && let Some(folder) = key.strip_suffix(b"/")
    {
        return Some(Listed::Folder { key: folder.to_vec() });
    }
    let archived = contents.storage_class.filter(|class| matches!(class.as_str(), "GLACIER" | "DEEP_ARCHIVE"));
    if let Some(class) = archived {
        return Some(Listed::Unusable { key, reason: format!("is archived (storage class {class})") });
    }
    let etag = contents.etag.as_deref().map(bare_etag).unwrap_or_default();
    if etag.is_empty() || !etag.bytes().all(|b| b.is_ascii_graphic()) {
        return Some(Listed::Unusable { key, reason: "has no usable ETag".to_owned() });
    }
    let Some(modified) = parse_time(&contents.last_modified) else {
        return Some(Listed::Unusable { key, reason: format!("has no valid time ({:?})", contents.last_modified) });
    };
    Some(Listed::Object { key, size: contents.size, modified, etag: etag.to_owned() })
}

/// `2026-11-23T14:03:59.123Z`, the one form that S3 knows.
fn parse_time(text: &str) -> Option<Mtime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second)
        && (0..=9999).contains(&year)
        && fraction.len() <= 9
        && fraction.bytes().all(|b| b.is_ascii_digit());
    if !in_range {
        return None;
    }
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    let days = days_since_1970(year, month, day);
    Some(Mtime { seconds: days * 86400 + hour * 3600 + minute * 60 + second, nanos })
}

/// Howard Hinnant's `days_from_civil`: years begin in March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(contents: &str, rest: &str) -> Result<Page, String> {
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>b</Name>{rest}{contents}</ListBucketResult>"
        );
        parse(xml.as_bytes(), b"p/")
    }

    fn contents(key: &str, size: u64) -> String {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-23T14:03:59.5Z</LastModified><ETag>&quot;e1&quot;</ETag>\
             <Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    }

    #[test]
    fn keys_come_as_they_are_however_odd() {
        let url = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>";
        let many = ["p/a+b%2Bc%25", "p/a//b", "p/../x", "p/%C3%BC%01", "p/%ff"].map(|key| contents(key, 1)).concat();
        let keys: Vec<_> = page(&many, url)
            .unwrap()
            .entries
            .into_iter()
            .map(|listed| match listed {
                Listed::Object { key, .. } => key,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(keys, [b"p/a b+c%".as_slice(), b"p/a//b", b"p/../x", b"p/\xc3\xbc\x01", b"p/\xff"]);
        let plain = page(&contents("p/a+b &amp; %41", 1), "").unwrap();
        assert!(matches!(&plain.entries[0], Listed::Object { key, .. } if key == b"p/a+b & %41"));
    }

    #[test]
    fn folders_archives_and_the_prefix_itself_are_told_apart() {
        let archived = contents("p/old", 1).replace("STANDARD", "GLACIER");
        let many = [contents("p/", 0), contents("p/f/", 0), contents("p/g/", 3), archived].concat();
        let page =
            page(&many, "<IsTruncated>true</IsTruncated><NextContinuationToken>t=</NextContinuationToken>").unwrap();
        assert_eq!(page.next_token.as_deref(), Some("t="));
        assert_eq!(page.entries[0], Listed::Folder { key: b"p/f".to_vec() });
        let modified = Mtime { seconds: 1_795_442_639, nanos: 500_000_000 };
        let file = Listed::Object { key: b"p/g/".to_vec(), size: 3, modified, etag: "e1".to_owned() };
        assert_eq!(page.entries[1], file);
        assert!(matches!(&page.entries[2], Listed::Unusable { .. }));
        assert_eq!(page.entries.len(), 3);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_refused() {
        assert!(page("", "<IsTruncated>true</IsTruncated>").unwrap_err().contains("continuation"));
        assert!(parse(b"<html>login</html", b"").is_err());
        assert!(parse(b"\xff\xfe", b"").is_err());
    }

    #[test]
    fn times_are_counted_from_1970() {
        assert_eq!(parse_time("1970-01-01T00:00:00.000Z"), Some(Mtime { seconds: 0, nanos: 0 }));
        assert_eq!(parse_time("2000-02-29T12:00:00Z"), Some(Mtime { seconds: 951_825_600, nanos: 0 }));
        for wrong in ["", "2026-11-23", "2026-13-23T00:00:00Z", "2026-11-23T00:00:00+01:00", "x-y-zT1:2:3Z"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }
}
