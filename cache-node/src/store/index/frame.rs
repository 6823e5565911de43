//! Frames: how the index's files are cut into parts that are whole or not there. A frame is a head (magic, length, sequence number, checksum
//! of the payload, checksum of the head) and a payload, and begins at a multiple of eight bytes, so that the next one can be found
//! behind one that is damaged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Also the version of everything in the frames.
const MAGIC: [u8; 4] = *b"FBi1";
const HEAD: u64 = 24;
const ALIGN: u64 = 8;

/// How much is looked through at once for the next head.
const WINDOW: usize = 64 << 10;

/// Adds a frame.
pub fn put(out: &mut Vec<u8>, sequence: u64, payload: &[u8]) {
    let mut head = [0; HEAD as usize];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..20].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c(&head[..20]);
    head[20..].copy_from_slice(&crc.to_le_bytes());
    out.extend(head);
    out.extend(payload);
    out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its place in the file's order.
    pub sequence: u64,
    /// Bytes of payload.
    pub length: u64,
    crc: u32,
}

impl Head {
    fn parse(bytes: &[u8; HEAD as usize]) -> Option<Self> {
        let (parts, _) = bytes.as_chunks::<4>();
        let word = |at: usize| parts.get(at).map(|word| u32::from_le_bytes(*word));
        if bytes[..4] != MAGIC || word(5)? != crc32c::crc32c(&bytes[..20]) {
            return None;
        }
        let sequence = u64::from(word(2)?) | u64::from(word(3)?) << 32;
        Some(Self { sequence, length: u64::from(word(1)?), crc: word(4)? })
    }

    /// Whether this is its payload.
    pub fn is_of(&self, payload: &[u8]) -> bool {
        crc32c::crc32c(payload) == self.crc
    }
}

/// What was found at a place in a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A frame; its payload is in the buffer and still to be checked ([`Head::is_of`]).
    Frame(Head),
    /// No frame, or one that is cut short.
    Nothing,
    /// The end of the file.
    End,
}

/// Reads a file frame by frame.
#[derive(Debug)]
pub struct Frames {
    file: File,
    offset: u64,
    length: u64,
}

impl Frames {
    /// From the file's begin.
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, offset: 0, length })
    }

    /// Where the next frame begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads the next frame's payload into the buffer. After [`Found::Nothing`] the place is the same.
    pub fn next(&mut self, payload: &mut Vec<u8>) -> io::Result<Found> {
        if self.offset >= self.length {
            return Ok(Found::End);
        }
        let Some(head) = self.head_at(self.offset)? else { return Ok(Found::Nothing) };
        let end = self.offset + HEAD + head.length;
        if end > self.length {
            return Ok(Found::Nothing);
        }
        payload.resize(head.length as usize, 0);
        self.file.read_exact_at(payload, self.offset + HEAD)?;
        self.offset = end.next_multiple_of(ALIGN);
        Ok(Found::Frame(head))
    }

    /// Goes to the next head behind `offset`; false when there is none.
    pub fn seek_behind(&mut self, offset: u64) -> io::Result<bool> {
        let mut at = (offset + 1).next_multiple_of(ALIGN);
        let mut window = vec![0; WINDOW];
        while at + HEAD <= self.length {
            let size = (self.length - at).min(WINDOW as u64) as usize;
            self.file.read_exact_at(&mut window[..size], at)?;
            for step in (0..size).step_by(ALIGN as usize) {
                let candidate = window.get(step..step + 4) == Some(&MAGIC[..]);
                if candidate && self.head_at(at + step as u64)?.is_some() {
                    self.offset = at + step as u64;
                    return Ok(true);
                }
            }
            at += size.next_multiple_of(ALIGN as usize) as u64;
        }
        Ok(false)
    }

    /// Goes to the end.
    pub fn seek_end(&mut self) {
        self.offset = self.length;
    }

    fn head_at(&self, offset: u64) -> io::Result<Option<Head>> {
        if offset + HEAD > self.length {
            return Ok(None);
        }
        let mut head = [0; HEAD as usize];
        self.file.read_exact_at(&mut head, offset)?;
        Ok(Head::parse(&head))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn frames(bytes: &[u8]) -> Frames {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Frames::new(file).unwrap()
    }

    proptest! {
        #[test]
        fn behind_a_damaged_frame_the_next_is_found(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 1..6),
            damage in any::<proptest::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let (mut bytes, mut starts) = (Vec::new(), Vec::new());
            for (payload, sequence) in payloads.iter().zip(0..) {
                starts.push(bytes.len());
                put(&mut bytes, sequence, payload);
            }
            let damaged = damage.index(bytes.len());
            bytes[damaged] ^= 1 << bit;
            let hit = starts.iter().rposition(|start| *start <= damaged).unwrap();
            let mut frames = frames(&bytes);
            let (mut payload, mut read) = (Vec::new(), Vec::new());
            loop {
                let at = frames.offset();
                match frames.next(&mut payload).unwrap() {
                    Found::Frame(head) if head.is_of(&payload) => {
                        prop_assert_eq!(&payload, &payloads[head.sequence as usize]);
                        read.push(head.sequence as usize);
                    }
                    Found::Frame(_) => {}
                    Found::Nothing if frames.seek_behind(at).unwrap() => {}
                    Found::Nothing | Found::End => break,
                }
            }
            let mut others: Vec<_> = (0..payloads.len()).collect();
            // A bit of the padding harms nothing.
            if read.len() < payloads.len() {
                others.remove(hit);
            }
            prop_assert_eq!(read, others);
        }
    }
}
