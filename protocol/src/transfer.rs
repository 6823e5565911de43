//! The frames by which chunks travel between cache nodes, on the node API's port beside gRPC. A connection begins with [`HELLO`] from both
//! sides; then requests go one way and answers come back in any order. Decoding is total: it accepts, wants more, or refuses, allocates no
//! more than a frame may hold, and never looks at more than it was given.
//!
//! Every frame begins with a header of 16 bytes, little-endian: kind (1), detail (1), flags (1), zero (1), number (4), length (4), checksum
//! (4). `length` bytes follow it. What the fields mean is said at each frame.

use crate::config::CHUNK_BYTES;

/// What TLS calls the protocol.
pub const ALPN: &[u8] = b"forebay/1";

/// What both sides of a connection send first: magic, version, zero. The first byte tells it from HTTP/2, whose preface begins with `P`.
pub const HELLO: [u8; 8] = *b"\xf0FBY\x01\x00\x00\x00";

/// Length of every frame's header.
pub const HEADER_BYTES: usize = 16;

/// Most chunks that one request names.
pub const MAX_ITEMS: usize = 1024;

/// Longest uid of a dataset: it is the name of a folder.
pub const MAX_UID: usize = 255;

/// Longest text of a failure.
pub const MAX_MESSAGE: usize = 4096;

/// Longest frame from a client.
pub const MAX_REQUEST: usize = HEADER_BYTES + 2 + MAX_UID + MAX_ITEMS * ITEM_BYTES;

/// A request's item: number (4), chunk (4), object (16), reach (1).
const ITEM_BYTES: usize = 25;

const REQUEST: u8 = 0x01;
const SUSPECT: u8 = 0x02;
const PING: u8 = 0x03;
const ANSWER: u8 = 0x81;
const PONG: u8 = 0x83;

const WAS_CACHED: u8 = 1;

/// How far a peer may go to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// From its cache, or else from the source.
    Source,
    /// From its cache, or else by way of the first owner, or else from the source. Never asked of the first owner, nor by one who relays.
    Relay,
    /// Only what it has.
    Cache,
}

/// One chunk that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Comes back with the answer; the client's choice.
    pub number: u32,
    /// The object's id.
    pub object: [u8; 16],
    /// The chunk's position in it.
    pub chunk: u32,
    /// How far to go.
    pub reach: Reach,
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Wants chunks of a dataset's objects: one answer for each.
    Request {
        /// The dataset's uid.
        dataset_uid: String,
        /// At least one, at most [`MAX_ITEMS`].
        items: Vec<Item>,
    },
    /// Got other bytes for this chunk than the checksum says. The receiver looks at its own copy and answers with [`Status::Intact`] or
    /// [`Status::Lacking`], which says that it has dropped it.
    Suspect {
        /// The dataset's uid.
        dataset_uid: String,
        /// The chunk.
        item: Item,
    },
    /// Wants a [`ServerFrame::Pong`] with this number.
    Ping(u32),
}

/// What a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// `length` bytes follow: the whole chunk, or the text of a failure.
    Answer(Answer),
    /// The answer to a ping.
    Pong(u32),
}

/// The header of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The item's number.
    pub number: u32,
    /// What came of it.
    pub status: Status,
    /// The chunk was there before it was asked for.
    pub was_cached: bool,
    /// Bytes that follow; at most a chunk, or [`MAX_MESSAGE`] of text.
    pub length: u32,
    /// crc32c of a chunk; 0 otherwise.
    pub crc: u32,
}

/// What came of a request. All but the first three are failures, with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The chunk.
    Chunk,
    /// It is not here, and no more than that was asked for.
    Lacking,
    /// The copy here is what it should be.
    Intact,
    /// No catalog here names the object.
    NotFound,
    /// The source's object is no longer the one of the catalog.
    Changed,
    /// The source refused, or could not be reached.
    Source,
    /// The node's disk failed.
    Store,
    /// The node serves nothing now.
    Closed,
    /// The object has no such chunk.
    Invalid,
}

/// Why bytes are no frame. The connection can't be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It doesn't begin like this protocol.
    #[error("not this protocol, or another version of it")]
    Hello,
    /// A kind that this side doesn't take.
    #[error("no frame of kind {0:#04x} is expected here")]
    Kind(u8),
    /// A frame of this kind has no such length.
    #[error("a frame of kind {kind:#04x} can't have {length} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// The length it claims.
        length: u32,
    },
    /// A field holds what it can't.
    #[error("a frame of kind {kind:#04x} has a bad {field}")]
    Field {
        /// Its kind.
        kind: u8,
        /// The field.
        field: &'static str,
    },
}

impl Status {
    const ALL: [Self; 9] = [
        Self::Chunk,
        Self::Lacking,
        Self::Intact,
        Self::NotFound,
        Self::Changed,
        Self::Source,
        Self::Store,
        Self::Closed,
        Self::Invalid,
    ];

    fn max_length(self) -> u64 {
        match self {
            Self::Chunk => CHUNK_BYTES,
            Self::Lacking | Self::Intact => 0,
            _ => MAX_MESSAGE as u64,
        }
    }
}

/// The fields of a header.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    kind: u8,
    detail: u8,
    flags: u8,
    number: u32,
    length: u32,
    checksum: u32,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let (first, rest) = bytes.split_at_mut(4);
        first.copy_from_slice(&[self.kind, self.detail, self.flags, 0]);
        for (to, from) in rest.chunks_exact_mut(4).zip([self.number, self.length, self.checksum]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some((bytes, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let &[kind, detail, flags, zero, ..] = bytes;
        if zero != 0 {
            return Err(FrameError::Field { kind, field: "header" });
        }
        let [_, number, length, checksum] = words(bytes);
        Ok(Some(Self { kind, detail, flags, number, length, checksum }))
    }

    fn plain(self, field: &'static str) -> Result<Self, FrameError> {
        if self.detail != 0 || self.flags != 0 || self.checksum != 0 {
            return Err(FrameError::Field { kind: self.kind, field });
        }
        Ok(self)
    }
}

fn words(bytes: &[u8; HEADER_BYTES]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    let mut all = [0; 4];
    for (to, from) in all.iter_mut().zip(words) {
        *to = u32::from_le_bytes(*from);
    }
    all
}

/// Refuses what doesn't begin as [`HELLO`] does.
pub fn check_hello(bytes: &[u8; HELLO.len()]) -> Result<(), FrameError> {
    if *bytes == HELLO { Ok(()) } else { Err(FrameError::Hello) }
}

impl ClientFrame {
    /// The frame at the beginning of `bytes` and its length there; none when it is not all there yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(header) = Header::decode(bytes)? else { return Ok(None) };
        if !matches!(header.kind, REQUEST | SUSPECT | PING) {
            return Err(FrameError::Kind(header.kind));
        }
        let Header { kind, number, length, .. } = header.plain("header")?;
        // Numbers are the items' own.
        if kind != PING && number != 0 {
            return Err(FrameError::Field { kind, field: "header" });
        }
        let total = HEADER_BYTES + length as usize;
        let bad_length = FrameError::Length { kind, length };
        if total > MAX_REQUEST || kind == PING && length != 0 {
            return Err(bad_length);
        }
        let Some(body) = bytes.get(HEADER_BYTES..total) else { return Ok(None) };
        if kind == PING {
            return Ok(Some((Self::Ping(number), total)));
        }
        let (uid_length, rest) = body.split_first_chunk::<2>().ok_or(bad_length)?;
        let uid_length = usize::from(u16::from_le_bytes(*uid_length));
        let (uid, rest) = rest.split_at_checked(uid_length).ok_or(bad_length)?;
        let (items, remainder) = rest.as_chunks::<ITEM_BYTES>();
        if uid_length > MAX_UID || !remainder.is_empty() || items.is_empty() || items.len() > MAX_ITEMS {
            return Err(bad_length);
        }
        let dataset_uid = str::from_utf8(uid).map_err(|_| FrameError::Field { kind, field: "dataset uid" })?.to_owned();
        let mut items = items.iter().map(|item| decode_item(kind, item));
        let frame = if kind == REQUEST {
            let items = items.collect::<Result<Vec<_>, _>>()?;
            Self::Request { dataset_uid, items }
        } else {
            let (Some(item), None) = (items.next(), items.next()) else { return Err(bad_length) };
            Self::Suspect { dataset_uid, item: item? }
        };
        Ok(Some((frame, total)))
    }

    /// Puts the frame's bytes behind `to`.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Request { dataset_uid, items } => encode_request(dataset_uid, items, to),
            Self::Suspect { dataset_uid, item } => encode_named(SUSPECT, dataset_uid, &[*item], to),
            Self::Ping(number) => to.extend(Header { kind: PING, number: *number, ..Header::default() }.encode()),
        }
    }
}

fn decode_item(kind: u8, bytes: &[u8; ITEM_BYTES]) -> Result<Item, FrameError> {
    let &[n0, n1, n2, n3, c0, c1, c2, c3, ref object @ .., reach] = bytes;
    let reach = match reach {
        0 => Reach::Source,
        1 => Reach::Cache,
        2 => Reach::Relay,
        _ => return Err(FrameError::Field { kind, field: "reach" }),
    };
    let (number, chunk) = (u32::from_le_bytes([n0, n1, n2, n3]), u32::from_le_bytes([c0, c1, c2, c3]));
    Ok(Item { number, object: *object, chunk, reach })
}

/// Puts one or more request frames for these items behind `to`: one for each [`MAX_ITEMS`]. The uid must not be longer than [`MAX_UID`].
pub fn encode_request(dataset_uid: &str, items: &[Item], to: &mut Vec<u8>) {
    for items in items.chunks(MAX_ITEMS) {
        encode_named(REQUEST, dataset_uid, items, to);
    }
}

fn encode_named(kind: u8, dataset_uid: &str, items: &[Item], to: &mut Vec<u8>) {
    debug_assert!(dataset_uid.len() <= MAX_UID);
    let length = 2 + dataset_uid.len() + items.len() * ITEM_BYTES;
    to.reserve(HEADER_BYTES + length);
    to.extend(Header { kind, length: length as u32, ..Header::default() }.encode());
    to.extend((dataset_uid.len() as u16).to_le_bytes());
    to.extend_from_slice(dataset_uid.as_bytes());
    for item in items {
        to.extend(item.number.to_le_bytes());
        to.extend(item.chunk.to_le_bytes());
        to.extend_from_slice(&item.object);
        to.push(match item.reach {
            Reach::Source => 0,
            Reach::Cache => 1,
            Reach::Relay => 2,
        });
    }
}

impl ServerFrame {
    /// The frame at the beginning of `bytes` and the length of its header there, behind which an answer's bytes follow; none when it is not
    /// all there yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(header) = Header::decode(bytes)? else { return Ok(None) };
        let Header { kind, detail, flags, number, length, checksum } = header;
        let frame = match kind {
            ANSWER => {
                let status = Status::ALL.get(usize::from(detail)).copied();
                let status = status.ok_or(FrameError::Field { kind, field: "status" })?;
                if flags & !WAS_CACHED != 0 {
                    return Err(FrameError::Field { kind, field: "header" });
                }
                if u64::from(length) > status.max_length() {
                    return Err(FrameError::Length { kind, length });
                }
                let was_cached = flags & WAS_CACHED != 0;
                Self::Answer(Answer { number, status, was_cached, length, crc: checksum })
            }
            PONG => {
                header.plain("header")?;
                if length != 0 {
                    return Err(FrameError::Length { kind, length });
                }
                Self::Pong(number)
            }
            _ => return Err(FrameError::Kind(kind)),
        };
        Ok(Some((frame, HEADER_BYTES)))
    }

    /// The frame's header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        match *self {
            Self::Answer(Answer { number, status, was_cached, length, crc }) => Header {
                kind: ANSWER,
                detail: status as u8,
                flags: if was_cached { WAS_CACHED } else { 0 },
                number,
                length,
                checksum: crc,
            }
            .encode(),
            Self::Pong(number) => Header { kind: PONG, number, ..Header::default() }.encode(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item() -> impl Strategy<Value = Item> {
        (any::<u32>(), any::<[u8; 16]>(), any::<u32>(), 0_usize..3).prop_map(|(number, object, chunk, reach)| {
            let reach = [Reach::Source, Reach::Cache, Reach::Relay][reach];
            Item { number, object, chunk, reach }
        })
    }

    fn client_frame() -> impl Strategy<Value = ClientFrame> {
        let uid = "[a-z0-9.-]{0,64}";
        prop_oneof![
            (uid, prop::collection::vec(item(), 1..50))
                .prop_map(|(dataset_uid, items)| ClientFrame::Request { dataset_uid, items }),
            (uid, item()).prop_map(|(dataset_uid, item)| ClientFrame::Suspect { dataset_uid, item }),
            any::<u32>().prop_map(ClientFrame::Ping),
        ]
    }

    fn server_frame() -> impl Strategy<Value = ServerFrame> {
        let answer = (any::<u32>(), 0..Status::ALL.len(), any::<bool>(), any::<u32>(), any::<u32>());
        prop_oneof![
            answer.prop_map(|(number, status, was_cached, length, crc)| {
                let status = Status::ALL[status];
                let length = (u64::from(length) % (status.max_length() + 1)) as u32;
                ServerFrame::Answer(Answer { number, status, was_cached, length, crc })
            }),
            any::<u32>().prop_map(ServerFrame::Pong),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_a_part_of_it_wants_more(
            frame in client_frame(), rest in prop::collection::vec(any::<u8>(), 0..40), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let length = bytes.len();
            prop_assert_eq!(ClientFrame::decode(&bytes[..cut.index(length)]), Ok(None));
            bytes.extend(rest);
            prop_assert_eq!(ClientFrame::decode(&bytes), Ok(Some((frame, length))));
        }

        #[test]
        fn answers_come_through(frame in server_frame(), cut in 0..HEADER_BYTES) {
            let bytes = frame.encode();
            prop_assert_eq!(ServerFrame::decode(&bytes), Ok(Some((frame, HEADER_BYTES))));
            prop_assert_eq!(ServerFrame::decode(&bytes[..cut]), Ok(None));
        }

        #[test]
        fn garbage_is_refused_or_is_exactly_what_it_says(
            mut bytes in prop::collection::vec(any::<u8>(), 0..2000), kind in 0_u8..5, answers in any::<bool>(),
            calm in any::<bool>(), length in 0_u32..2000,
        ) {
            // Mostly plausible headers: plain garbage ends at the first byte.
            if bytes.len() >= HEADER_BYTES {
                bytes[0] = kind | if answers { 0x80 } else { 0 };
                if calm {
                    bytes[1..4].fill(0);
                    bytes[8..12].copy_from_slice(&length.to_le_bytes());
                    bytes[12..16].fill(0);
                }
            }
            if let Ok(Some((frame, used))) = ClientFrame::decode(&bytes) {
                let mut again = Vec::new();
                let numbered = matches!(frame, ClientFrame::Ping(_));
                frame.encode(&mut again);
                prop_assert!(used <= bytes.len() && used <= MAX_REQUEST);
                // A request has no number of its own.
                let from = if numbered { 0 } else { 8 };
                prop_assert_eq!(&again[from..], &bytes[from..used]);
            }
            if let Ok(Some((frame, used))) = ServerFrame::decode(&bytes) {
                prop_assert_eq!(&frame.encode()[..], &bytes[..used]);
            }
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_from_its_header() {
        let huge = Header { kind: REQUEST, length: MAX_REQUEST as u32, ..Header::default() };
        assert!(matches!(ClientFrame::decode(&huge.encode()), Err(FrameError::Length { .. })));
        for (detail, length) in [(0, CHUNK_BYTES as u32 + 1), (1, 1), (3, MAX_MESSAGE as u32 + 1)] {
            let header = Header { kind: ANSWER, detail, length, ..Header::default() };
            assert!(matches!(ServerFrame::decode(&header.encode()), Err(FrameError::Length { .. })), "{detail}");
        }
        let mut most = Vec::new();
        let item = Item { number: 1, object: [2; 16], chunk: 3, reach: Reach::Cache };
        encode_request(&"u".repeat(MAX_UID), &vec![item; MAX_ITEMS], &mut most);
        assert_eq!(most.len(), MAX_REQUEST);
        assert!(matches!(ClientFrame::decode(&most), Ok(Some((_, MAX_REQUEST)))));
    }

    #[test]
    fn a_request_of_no_items_and_one_that_is_not_text_are_refused() {
        let mut bytes = Vec::new();
        encode_named(REQUEST, "u", &[], &mut bytes);
        assert!(matches!(ClientFrame::decode(&bytes), Err(FrameError::Length { .. })));
        bytes.clear();
        let item = Item { number: 1, object: [2; 16], chunk: 3, reach: Reach::Cache };
        ClientFrame::Suspect { dataset_uid: "u".to_owned(), item }.encode(&mut bytes);
        bytes[HEADER_BYTES + 2] = 0xff;
        assert_eq!(ClientFrame::decode(&bytes), Err(FrameError::Field { kind: SUSPECT, field: "dataset uid" }));
    }
}
