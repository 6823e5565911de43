//! Who was here lately: fingerprints of evicted objects, 8 bytes each. One that returns while it is remembered is likely to be read again.
//! Forgets the oldest; a wrong "was here" comes once in about two hundred for ten million entries, and costs nothing but a worse guess.

use forebay_catalog::ObjectId;

/// Entries that share a place; a full place drops its oldest.
const WAYS: usize = 8;

/// A fingerprint and when it came.
#[derive(Clone, Copy, Debug, Default)]
struct Trace {
    fingerprint: u32,
    /// Low bits of the count of evictions, from 1; 0 is nobody.
    at: u32,
}

/// A table of fingerprints.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    places: Vec<[Trace; WAYS]>,
    now: u32,
    /// How many of the latest are remembered.
    limit: u32,
}

impl Ghost {
    /// Remembers an object, and as many before it as `limit` says.
    pub(super) fn remember(&mut self, id: &ObjectId, limit: usize) {
        self.limit = u32::try_from(limit).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
        if limit > self.places.len() * WAYS * 3 / 4 {
            self.grow(limit);
        }
        self.now = self.now.wrapping_add(1).max(1);
        let trace = Trace { fingerprint: fingerprint(id), at: self.now };
        self.put(trace);
    }

    /// Whether the object was here lately; it is not asked twice.
    pub(super) fn recall(&mut self, id: &ObjectId) -> bool {
        let fingerprint = fingerprint(id);
        let (now, limit) = (self.now, self.limit);
        let Some(place) = self.place(fingerprint) else { return false };
        let found = place.iter_mut().find(|trace| trace.at != 0 && trace.fingerprint == fingerprint);
        found.is_some_and(|trace| now.wrapping_sub(std::mem::take(&mut trace.at)) < limit)
    }

    fn place(&mut self, fingerprint: u32) -> Option<&mut [Trace; WAYS]> {
        // A power of two.
        let mask = self.places.len().checked_sub(1)?;
        self.places.get_mut(fingerprint as usize & mask)
    }

    fn put(&mut self, trace: Trace) {
        let now = self.now;
        let age = |trace: &Trace| if trace.at == 0 { u32::MAX } else { now.wrapping_sub(trace.at) };
        let oldest = self.place(trace.fingerprint).and_then(|place| place.iter_mut().max_by_key(|trace| age(trace)));
        if let Some(oldest) = oldest {
            *oldest = trace;
        }
    }

    fn grow(&mut self, limit: usize) {
        let places = (limit * 4 / 3).div_ceil(WAYS).next_power_of_two().max(16);
        let before = std::mem::replace(&mut self.places, vec![[Trace::default(); WAYS]; places]);
        before.iter().flatten().filter(|trace| trace.at != 0).for_each(|trace| self.put(*trace));
    }
}

/// Ids are hashes already.
fn fingerprint(id: &ObjectId) -> u32 {
    let [a, b, c, d, ..] = *id.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ObjectId {
        ObjectId::new("ghost", &n.to_le_bytes(), "e", 1)
    }

    #[test]
    fn the_latest_are_remembered_and_the_oldest_forgotten() {
        let mut ghost = Ghost::default();
        assert!(!ghost.recall(&id(0)));
        for n in 0..10_000 {
            ghost.remember(&id(n), 1000);
        }
        let recalled = |ghost: &mut Ghost, range: std::ops::Range<u32>| range.filter(|n| ghost.recall(&id(*n))).count();
        assert_eq!(recalled(&mut ghost, 0..8900), 0);
        assert!(recalled(&mut ghost, 9001..10_000) > 900);
        assert_eq!(recalled(&mut ghost, 9001..10_000), 0, "once");
        assert_eq!(recalled(&mut ghost, 20_000..30_000), 0);
    }

    #[test]
    fn it_grows_with_what_it_is_to_remember() {
        let mut ghost = Ghost::default();
        for n in 0..5000 {
            ghost.remember(&id(n), n as usize + 1);
        }
        let kept = (0..5000).filter(|n| ghost.recall(&id(*n))).count();
        assert!(kept > 4500, "{kept}");
    }
}
