//! Lets the kubelet's plugin manager talk to tonic. It dials the registration socket by its bare path, so grpc-go sends the percent-encoded
//! path as `:authority`, which the HTTP/2 library under tonic refuses as malformed (a percent sign is no part of a host). The CSI
//! socket itself is dialled with the authority `localhost` and needs none of this.
//!
//! A connection's incoming bytes pass through here: header blocks are decoded and written anew with `:authority: localhost`, all else is passed on
//! as it is. Outgoing bytes are not touched.

use std::io;

use loona_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::UnixStream;

/// Length of the client's connection preface, RFC 9113 section 3.4.
const PREFACE_BYTES: usize = 24;

/// Largest frame before the server allows larger ones, RFC 9113 section 4.2. The kubelet's requests are some hundred bytes.
const MAX_FRAME_BYTES: usize = 16 << 10;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The same connection with an authority that can be parsed; served by tasks of its own until either side closes.
pub fn relay(stream: UnixStream) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (from_client, mut to_client) = stream.into_split();
    let (mut from_server, to_server) = tokio::io::split(theirs);
    tokio::spawn(async move {
        if let Err(error) = rewrite(from_client, to_server).await {
            tracing::debug!(%error, "a connection to the registration socket ended");
        }
    });
    tokio::spawn(async move {
        // The end of a connection is no news.
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    });
    ours
}

/// One frame: type, flags, stream id, payload.
struct Frame {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let [l0, l1, l2, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(invalid("a frame is longer than allowed"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Ok(Self { kind, flags, stream, payload })
    }

    async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let [_, l0, l1, l2] = (self.payload.len() as u32).to_be_bytes();
        let mut bytes = vec![l0, l1, l2, self.kind, self.flags];
        bytes.extend_from_slice(&self.stream);
        bytes.extend_from_slice(&self.payload);
        to.write_all(&bytes).await
    }

    /// A HEADERS frame's header block without padding and priority.
    fn header_block(&self) -> io::Result<&[u8]> {
        let mut block = self.payload.as_slice();
        if self.flags & PADDED != 0 {
            let (padding, rest) = block.split_first().ok_or_else(|| invalid("a padded frame is empty"))?;
            let length =
                rest.len().checked_sub(usize::from(*padding)).ok_or_else(|| invalid("more padding than frame"))?;
            block = rest.get(..length).unwrap_or_default();
        }
        if self.flags & PRIORITY != 0 {
            block = block.get(5..).ok_or_else(|| invalid("a frame is too short for its priority"))?;
        }
        Ok(block)
    }
}

async fn rewrite(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut preface = [0; PREFACE_BYTES];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    // One decoder for the connection: header blocks refer to earlier ones.
    let mut decoder = Decoder::new();
    loop {
        let mut frame = Frame::read(&mut from).await?;
        if frame.kind == HEADERS {
            let mut block = frame.header_block()?.to_vec();
            while frame.flags & END_HEADERS == 0 {
                let next = Frame::read(&mut from).await?;
                if next.kind != CONTINUATION || next.stream != frame.stream || block.len() > MAX_FRAME_BYTES {
                    return Err(invalid("a header block is cut short or too long"));
                }
                block.extend_from_slice(&next.payload);
                frame.flags |= next.flags & END_HEADERS;
            }
            frame.payload = with_local_authority(&mut decoder, &block)?;
            frame.flags = (frame.flags & END_STREAM) | END_HEADERS;
        }
        frame.write(&mut to).await?;
    }
}

fn with_local_authority(decoder: &mut Decoder<'_>, block: &[u8]) -> io::Result<Vec<u8>> {
    let headers =
        decoder.decode(block).map_err(|error| invalid(&format!("a header block can't be decoded: {error:?}")))?;
    let mut encoded = Vec::with_capacity(block.len() * 2);
    for (name, value) in headers {
        let value = if name == b":authority" { b"localhost".to_vec() } else { value };
        // A literal without indexing, RFC 7541 section 6.2.2: it needs no encoder state.
        encoded.push(0);
        push_string(&mut encoded, &name);
        push_string(&mut encoded, &value);
    }
    if encoded.len() > MAX_FRAME_BYTES {
        return Err(invalid("a header block is too long"));
    }
    Ok(encoded)
}

/// A string literal without Huffman coding, RFC 7541 sections 5.1 and 5.2.
fn push_string(encoded: &mut Vec<u8>, text: &[u8]) {
    const PREFIX_MAX: usize = 127;
    if text.len() < PREFIX_MAX {
        encoded.push(text.len() as u8);
    } else {
        encoded.push(PREFIX_MAX as u8);
        let mut rest = text.len() - PREFIX_MAX;
        while rest >= 128 {
            encoded.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        encoded.push(rest as u8);
    }
    encoded.extend_from_slice(text);
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_frame(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, payload.len() as u8, HEADERS, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    async fn relayed(input: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        let error = rewrite(input, &mut output).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        output
    }

    #[tokio::test]
    async fn the_authority_becomes_localhost_and_all_else_stays() {
        // :authority (index 1) as a literal that is indexed, then a reference to it, with padding, split over two frames.
        let mut first = vec![0x41];
        push_string(&mut first, b"%2Fvar%2Flib%2Fsock");
        let mut second = vec![2];
        second.extend_from_slice(&[0xbe, 0x82]);
        second.extend_from_slice(&[0, 0]);
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let input = [
            &[b'p'; PREFACE_BYTES][..],
            &headers_frame(END_HEADERS, &first),
            &ping,
            &headers_frame(END_HEADERS | PADDED | END_STREAM, &second),
        ]
        .concat();
        let output = relayed(&input).await;
        let authority = b"\x00\x0a:authority\x09localhost";
        let expected = [
            &[b'p'; PREFACE_BYTES][..],
            &headers_frame(END_HEADERS, authority),
            &ping,
            &headers_frame(END_HEADERS | END_STREAM, &[&authority[..], b"\x00\x07:method\x03GET"].concat()),
        ]
        .concat();
        assert_eq!(output, expected);
    }

    #[tokio::test]
    async fn malformed_frames_end_the_connection_without_a_panic() {
        for payload in [&[][..], &[255, 0], &[0xff; 20]] {
            let input = [&[b'p'; PREFACE_BYTES][..], &headers_frame(END_HEADERS | PADDED | PRIORITY, payload)].concat();
            assert!(rewrite(input.as_slice(), &mut Vec::new()).await.is_err());
        }
    }
}
