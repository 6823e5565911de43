//! A small S3 client for tests: signs requests (Signature Version 4) and sends each over a connection of its own that it
//! opens inside a network namespace. It does what setting up a test takes, with plain and exact errors, and no more.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::network::in_namespace;
use crate::setup::hex;

/// What requests are signed with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The public half.
    pub access_key: String,
    /// The secret half.
    pub secret_key: String,
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    namespace: String,
    address: String,
    region: String,
    credentials: Credentials,
}

/// An answer with a good status.
#[derive(Debug)]
pub struct Answer {
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Client {
    /// A client of the server at `address` (`HOST:PORT`), seen from network namespace `namespace`.
    pub fn new(namespace: &str, address: &str, region: &str, credentials: Credentials) -> Self {
        Self { namespace: namespace.to_owned(), address: address.to_owned(), region: region.to_owned(), credentials }
    }

    /// The names of all buckets, as the server's XML.
    pub fn list_buckets(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.request("GET", "/", &[], &[])?.body).into_owned())
    }

    /// Makes a bucket.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        self.request("PUT", &format!("/{bucket}"), &[], &[]).map(drop)
    }

    /// Removes a bucket, which must be empty.
    pub fn delete_bucket(&self, bucket: &str) -> Result<()> {
        self.request("DELETE", &format!("/{bucket}"), &[], &[]).map(drop)
    }

    /// Writes an object; returns its ETag.
    pub fn put(&self, bucket: &str, key: &str, content: &[u8]) -> Result<String> {
        let answer = self.request("PUT", &object_path(bucket, key), &[], content)?;
        answer.header("etag").map(str::to_owned).with_context(|| format!("no ETag for {bucket}/{key}"))
    }

    /// Reads an object.
    pub fn get(&self, bucket: &str, key: &str) -> Result<Vec<u8>> {
        Ok(self.request("GET", &object_path(bucket, key), &[], &[])?.body)
    }

    /// Removes an object.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        self.request("DELETE", &object_path(bucket, key), &[], &[]).map(drop)
    }

    /// Sends a signed request. `path` is percent-encoded already; `query` is not, and is in order of its names.
    pub fn request(&self, method: &str, path: &str, query: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        self.send(method, path, query, body).with_context(|| format!("{method} http://{}{path}", self.address))
    }

    fn send(&self, method: &str, path: &str, query: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{}={}", encode(name, false), encode(value, false))).collect();
        let query = query.join("&");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let time = amz_time(now.as_secs());
        let payload = hex(&Sha256::digest(body));
        let authorization = self.authorization(method, path, &query, &time, &payload);

        let mut stream = in_namespace(&self.namespace, || TcpStream::connect(&self.address).context("connecting"))?;
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        stream.set_write_timeout(Some(Duration::from_mins(1)))?;
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nx-amz-content-sha256: {payload}\r\nx-amz-date: {time}\r\n\
             authorization: {authorization}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).context("sending")?;
        // A server that refuses may close before it has read the body; its answer says why.
        let sent = stream.write_all(body);
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .or_else(|error| if answer.is_empty() { Err(error) } else { Ok(0) })
            .context("reading the answer")?;
        let answer = parse(&answer, method == "HEAD")?;
        sent.context("sending the body")?;
        Ok(answer)
    }

    fn authorization(&self, method: &str, path: &str, query: &str, time: &str, payload: &str) -> String {
        const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
        let headers = format!("host:{}\nx-amz-content-sha256:{payload}\nx-amz-date:{time}\n", self.address);
        let canonical = format!("{method}\n{path}\n{query}\n{headers}\n{SIGNED}\n{payload}");
        let date = &time[..8];
        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
        let mut key = hmac(format!("AWS4{}", self.credentials.secret_key).as_bytes(), date.as_bytes());
        for part in [self.region.as_str(), "s3", "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        let signature = hex(&hmac(&key, to_sign.as_bytes()));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={SIGNED},Signature={signature}",
            self.credentials.access_key
        )
    }
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn object_path(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", encode(key, true))
}

/// Percent-encodes as Signature Version 4 prescribes.
fn encode(text: &str, keep_slashes: bool) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slashes && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

/// Seconds since 1970 as `20260131T235959Z`.
fn amz_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date by eras of 400 years, which begin on 1 March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day_of_month:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Takes an answer apart; one with a bad status is an error with the body that explains it.
fn parse(answer: &[u8], no_body: bool) -> Result<Answer> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the connection ended within the answer's head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = &answer[end + 4..];
    let mut lines = head.lines();
    let status_line = lines.next().unwrap_or_default();
    let status: u16 = status_line.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut parsed = Answer { headers, body: body.to_vec() };
    if parsed.header("transfer-encoding") == Some("chunked") {
        parsed.body = unchunk(body)?;
    }
    if !(200..300).contains(&status) {
        bail!("{status_line}: {}", String::from_utf8_lossy(&parsed.body));
    }
    let length = parsed.header("content-length").and_then(|length| length.parse::<usize>().ok());
    if let Some(length) = length.filter(|length| !no_body && *length != parsed.body.len()) {
        bail!("the body ended after {} of {length} bytes", parsed.body.len());
    }
    Ok(parsed)
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").context("a chunk has no length")?;
        let length = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|text| usize::from_str_radix(text.split(';').next()?, 16).ok());
        let length = length.context("a chunk's length is no number")?;
        let chunk = rest.get(end + 2..end + 2 + length).context("a chunk was cut short")?;
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + length..).context("a chunk was cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_agrees_with_rfc_4231() {
        let mac = hex(&hmac(b"Jefe", b"what do ya want for nothing?"));
        assert_eq!(mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn times_are_written_as_signatures_want_them() {
        assert_eq!(amz_time(0), "19700101T000000Z");
        assert_eq!(amz_time(951_782_399), "20000228T235959Z");
        assert_eq!(amz_time(951_782_400), "20000229T000000Z");
        assert_eq!(amz_time(1_798_761_599), "20261231T235959Z");
    }

    #[test]
    fn keys_are_encoded_but_for_their_slashes() {
        assert_eq!(object_path("b", "a b/ü+.png"), "/b/a%20b/%C3%BC%2B.png");
    }

    #[test]
    fn a_bad_status_is_an_error_with_the_servers_reason() {
        let error = parse(b"HTTP/1.1 404 Not Found\r\n\r\n<Code>NoSuchKey</Code>", false).unwrap_err();
        assert_eq!(error.to_string(), "HTTP/1.1 404 Not Found: <Code>NoSuchKey</Code>");
    }

    #[test]
    fn a_chunked_body_is_put_together() {
        let answer =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", false);
        assert_eq!(answer.unwrap().body, b"abcde");
    }
}
