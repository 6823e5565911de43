//! Objects' content: looks random, and is the same every time.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

/// `length` bytes that depend on the seed alone.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut random = Random::new(seed);
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Numbers that look random: splitmix64, which is good for any seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }
}

/// An address of this machine that nobody listens at.
pub fn free_address(ip: [u8; 4]) -> Result<SocketAddr> {
    let listener = TcpListener::bind((IpAddr::from(ip), 0)).context("looking for a free port")?;
    listener.local_addr().context("asking for a free port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_depends_on_its_seed_alone() {
        assert_eq!(content(1, 1000), content(1, 1000));
        assert_eq!(content(1, 1000)[..10], content(1, 10)[..]);
        assert_ne!(content(1, 1000), content(2, 1000));
        assert_eq!(content(3, 13).len(), 13);
    }
}
