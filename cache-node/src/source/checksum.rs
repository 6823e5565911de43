//! The provider's own checksum of a whole object, as S3 gives it in `x-amz-checksum-*`: what arrives is compared with what was uploaded.
//! Checksums of checksums of parts (composite ones) say nothing about the bytes of an answer and are left aside.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use futures::{StreamExt, stream};
use http::HeaderMap;

use super::{Body, SourceError};

/// Asks for the checksums.
pub const MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

/// A checksum of a whole object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

/// Quick ones first: one is enough.
const KINDS: [(&str, Kind); 5] = [
    ("x-amz-checksum-crc64nvme", Kind::Crc64Nvme),
    ("x-amz-checksum-crc32c", Kind::Crc32c),
    ("x-amz-checksum-crc32", Kind::Crc32),
    ("x-amz-checksum-sha256", Kind::Sha256),
    ("x-amz-checksum-sha1", Kind::Sha1),
];

/// What the bytes of an answer must come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    kind: Kind,
    expected: Vec<u8>,
}

enum State {
    Crc32(crc_fast::Digest),
    Crc64(crc_fast::Digest),
    /// Hardware crc32c, as for our own chunks.
    Crc32c(u32),
    Sha(digest::Context),
}

impl Checksum {
    /// The checksum that an answer's headers give for the whole object, if they give one.
    pub fn of_answer(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if text("x-amz-checksum-type").is_some_and(|kind| kind.eq_ignore_ascii_case("COMPOSITE")) {
            return None;
        }
        KINDS.iter().find_map(|&(name, kind)| {
            // A composite one ends in "-" and the number of parts, which is no base64.
            let expected = BASE64_STANDARD.decode(text(name)?.trim()).ok()?;
            (expected.len() == kind.length()).then_some(Self { kind, expected })
        })
    }

    /// The same body, which ends with an error when its bytes are not the right ones.
    pub fn verify(self, what: String, body: Body) -> Body {
        let Self { kind, expected } = self;
        let begin = (body, Some((kind.begin(), expected, what)));
        stream::unfold(begin, move |(mut body, state)| async move {
            let (mut digest, expected, what) = state?;
            match body.next().await {
                Some(Ok(piece)) => {
                    digest.update(&piece);
                    Some((Ok(piece), (body, Some((digest, expected, what)))))
                }
                Some(Err(error)) => Some((Err(error), (body, None))),
                None if digest.finish() == expected => None,
                None => Some((Err(kind.mismatch(&what)), (body, None))),
            }
        })
        .boxed()
    }
}

impl Kind {
    fn length(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn begin(self) -> State {
        match self {
            Self::Crc32 => State::Crc32(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc)),
            Self::Crc64Nvme => State::Crc64(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme)),
            Self::Crc32c => State::Crc32c(0),
            Self::Sha1 => State::Sha(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY)),
            Self::Sha256 => State::Sha(digest::Context::new(&digest::SHA256)),
        }
    }

    fn mismatch(self, what: &str) -> SourceError {
        SourceError::damaged(format!(
            "{what}: the bytes that came do not match the source's own checksum ({self:?}); they are asked for again. If this goes on, compare the object with its original"
        ))
    }
}

impl State {
    fn update(&mut self, piece: &Bytes) {
        match self {
            Self::Crc32(digest) | Self::Crc64(digest) => digest.update(piece),
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, piece),
            Self::Sha(context) => context.update(piece),
        }
    }

    /// Big-endian, as the headers have it.
    fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc32(digest) => (digest.finalize() as u32).to_be_bytes().to_vec(),
            Self::Crc64(digest) => digest.finalize().to_be_bytes().to_vec(),
            Self::Crc32c(crc) => crc.to_be_bytes().to_vec(),
            Self::Sha(context) => context.finish().as_ref().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use http::{HeaderName, HeaderValue};

    use super::*;

    /// "123456789" and its checksums as the catalogues of CRCs and FIPS 180 have them.
    const CHECKED: [(&str, &str); 5] = [
        ("x-amz-checksum-crc32", "cbf43926"),
        ("x-amz-checksum-crc32c", "e3069283"),
        ("x-amz-checksum-crc64nvme", "ae8b14860a799888"),
        ("x-amz-checksum-sha1", "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        ("x-amz-checksum-sha256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
    ];

    fn headers(all: &[(&'static str, String)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, String)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        all.iter().map(header).collect()
    }

    fn base64_of(hex: &str) -> String {
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        BASE64_STANDARD.encode(bytes)
    }

    async fn verified(headers: &HeaderMap, pieces: &[&'static [u8]]) -> Result<Vec<u8>, SourceError> {
        let body: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        let body = Checksum::of_answer(headers).unwrap().verify("reading k".to_owned(), stream::iter(body).boxed());
        let pieces: Vec<Bytes> = body.try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn each_kind_tells_right_bytes_from_wrong_ones_however_they_are_cut() {
        for (name, hex) in CHECKED {
            let headers = headers(&[(name, base64_of(hex)), ("x-amz-checksum-type", "FULL_OBJECT".to_owned())]);
            assert_eq!(verified(&headers, &[b"1234", b"", b"56789"]).await.unwrap(), b"123456789", "{name}");
            let wrong: [&[&'static [u8]]; 4] = [&[b"123456788"], &[b"1234", b"5678"], &[], &[b"0", b"123456789"]];
            for wrong in wrong {
                let error = verified(&headers, wrong).await.unwrap_err();
                assert!(error.is_damage() && error.is_transient(), "{name}: {error}");
                assert!(error.to_string().contains("reading k"), "{error}");
            }
        }
    }

    #[test]
    fn composite_and_nonsensical_ones_are_left_aside() {
        let crc = base64_of("cbf43926");
        for left_aside in [
            vec![("x-amz-checksum-crc32", format!("{crc}-3"))],
            vec![("x-amz-checksum-crc32", crc.clone()), ("x-amz-checksum-type", "COMPOSITE".to_owned())],
            vec![("x-amz-checksum-sha256", crc.clone())],
            vec![("x-amz-checksum-md5", crc)],
            vec![],
        ] {
            assert_eq!(Checksum::of_answer(&headers(&left_aside)), None, "{left_aside:?}");
        }
    }
}
