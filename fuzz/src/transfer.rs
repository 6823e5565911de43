//! The frames by which chunks travel, as either side of a connection may send them, and what the asking side makes of answers.

use std::fmt::Debug;

use forebay_cache_node::fuzzing::{PeerAnswer, peer_answers};
use forebay_protocol::transfer::{
    Answer, ClientFrame, FrameError, HEADER_BYTES, Item, MAX_REQUEST, Reach, ServerFrame, Status,
};

/// Of the chunks that were asked for.
const LENGTHS: [u32; 4] = [5, 0, 4096, 4 << 20];

/// Frames of a client, of a server, or all that a peer answers.
pub fn run(data: &[u8]) {
    match data {
        [0, bytes @ ..] => frames(bytes, ClientFrame::decode, ClientFrame::encode),
        [1, bytes @ ..] => frames(bytes, ServerFrame::decode, |frame, to| to.extend(frame.encode())),
        [read_ahead, bytes @ ..] => answers(bytes, HEADER_BYTES + usize::from(*read_ahead)),
        [] => {}
    }
}

/// What is taken for a frame is one: less of it is not, and written again it has the same bytes.
fn frames<F: Debug + PartialEq>(
    mut bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<Option<(F, usize)>, FrameError>,
    encode: impl Fn(&F, &mut Vec<u8>),
) {
    while let Ok(Some((frame, used))) = decode(bytes) {
        let (of_frame, rest) = bytes.split_at(used);
        assert!((HEADER_BYTES..=MAX_REQUEST).contains(&used));
        assert_eq!(decode(of_frame), Ok(Some((frame, used))));
        for part in [0, HEADER_BYTES - 1, used - 1] {
            assert_eq!(decode(of_frame.get(..part).unwrap_or_default()), Ok(None), "{part} bytes of {used}");
        }
        let mut again = Vec::new();
        if let Ok(Some((frame, _))) = decode(of_frame) {
            encode(&frame, &mut again);
        }
        assert_eq!(again, of_frame);
        bytes = rest;
    }
}

/// Each request gets what the frames say, however the bytes come, and nothing but right bytes is called sound.
fn answers(bytes: &[u8], read_ahead: usize) {
    let (answers, _) = peer_answers(bytes, &LENGTHS, read_ahead);
    assert_eq!(answers, expected(bytes));
    for (answer, length) in answers.iter().zip(LENGTHS).filter_map(|(answer, length)| Some((answer.as_ref()?, length)))
    {
        let is_right = answer.bytes.len() == length as usize && crc32c::crc32c(&answer.bytes) == answer.crc;
        assert_eq!(answer.sound, answer.status != Status::Chunk || is_right);
    }
}

/// The same, said as simply as can be.
fn expected(mut bytes: &[u8]) -> Vec<Option<PeerAnswer>> {
    let mut all: Vec<Option<PeerAnswer>> = vec![None; LENGTHS.len()];
    while let Ok(Some((frame, used))) = ServerFrame::decode(bytes) {
        bytes = bytes.get(used..).unwrap_or_default();
        let ServerFrame::Answer(Answer { number, status, length, crc, .. }) = frame else { continue };
        let (Some(answer), Some(wanted)) = (all.get_mut(number as usize), LENGTHS.get(number as usize)) else { break };
        let (None, Some((body, rest))) = (&answer, bytes.split_at_checked(length as usize)) else { break };
        let sound = status != Status::Chunk || length == *wanted && crc32c::crc32c(body) == crc;
        *answer = Some(PeerAnswer { status, bytes: body.to_vec(), crc, sound });
        bytes = rest;
    }
    all
}

/// Each kind of frame, and answers right and wrong.
pub fn seeds() -> Vec<Vec<u8>> {
    let item = Item { number: 1, object: [7; 16], chunk: 2, reach: Reach::Relay };
    let client = |frame: ClientFrame| {
        let mut bytes = vec![0];
        frame.encode(&mut bytes);
        bytes
    };
    let answer = |number, status, body: &[u8], crc| {
        let answer = Answer { number, status, was_cached: true, length: body.len() as u32, crc };
        [&ServerFrame::Answer(answer).encode()[..], body].concat()
    };
    let good = answer(0, Status::Chunk, b"hello", crc32c::crc32c(b"hello"));
    let told = answer(2, Status::Source, b"no such bucket", 0);
    let empty = answer(1, Status::Lacking, b"", 0);
    let pong = ServerFrame::Pong(3).encode();
    let mut numbered = client(ClientFrame::Suspect { dataset_uid: "a-uid".to_owned(), item });
    if let Some(number) = numbered.get_mut(5) {
        *number = 0x9a;
    }
    vec![
        client(ClientFrame::Request { dataset_uid: "a-uid".to_owned(), items: vec![item, Item { number: 2, ..item }] }),
        client(ClientFrame::Suspect { dataset_uid: "a-uid".to_owned(), item }),
        client(ClientFrame::Ping(9)),
        // Found by fuzzing: a request with a number of its own was taken for one without.
        numbered,
        [&[1][..], &pong, &empty].concat(),
        [&[2][..], &pong, &empty, &good, &told].concat(),
        [&[255][..], &told, &answer(0, Status::Chunk, b"hella", crc32c::crc32c(b"hello")), &good].concat(),
    ]
}
