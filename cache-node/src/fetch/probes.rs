//! Whether it is worth asking a member for what it may hold: after a change the former owners are asked first, but one that has never had
//! anything of a dataset soon is not any more, so that a cold cluster does not ask around for ever.

use std::collections::HashMap;
use std::net::SocketAddr;

use parking_lot::Mutex;

/// So many answers that there is nothing, and not one that there is something, end the asking ...
const ENOUGH: u32 = 256;
/// ... but for every so many-th question.
const NOW_AND_THEN: u32 = 16;

/// What came of asking, by dataset and member.
#[derive(Debug, Default)]
pub(super) struct Probes {
    asked: Mutex<HashMap<String, HashMap<SocketAddr, Record>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    in_vain: u32,
    left_out: u32,
}

impl Probes {
    /// Whether to ask.
    pub(super) fn is_worth(&self, dataset_uid: &str, address: SocketAddr) -> bool {
        let mut asked = self.asked.lock();
        let Some(record) = asked.get_mut(dataset_uid).and_then(|members| members.get_mut(&address)) else {
            return true;
        };
        if record.in_vain < ENOUGH {
            return true;
        }
        record.left_out = (record.left_out + 1) % NOW_AND_THEN;
        record.left_out == 0
    }

    /// It had it, or not.
    pub(super) fn note(&self, dataset_uid: &str, address: SocketAddr, had_it: bool) {
        let mut asked = self.asked.lock();
        let members = if let Some(members) = asked.get_mut(dataset_uid) {
            members
        } else {
            asked.entry(dataset_uid.to_owned()).or_default()
        };
        let record = members.entry(address).or_default();
        record.in_vain = if had_it { 0 } else { record.in_vain.saturating_add(1) };
    }

    /// Something has changed: all are asked again.
    pub(super) fn forget(&self, dataset_uid: &str) {
        self.asked.lock().remove(dataset_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_has_anything_is_soon_left_alone_and_who_had_something_is_not() {
        let (probes, empty, full) =
            (Probes::default(), SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let mut asked = 0;
        for round in 0..1000 {
            if probes.is_worth("d", empty) {
                asked += 1;
                probes.note("d", empty, false);
            }
            assert!(probes.is_worth("d", full));
            probes.note("d", full, round % 8 == 0);
        }
        assert!((ENOUGH..ENOUGH + 1000 / NOW_AND_THEN).contains(&asked), "{asked}");
        assert!(probes.is_worth("another", empty));
        probes.forget("d");
        assert!(probes.is_worth("d", empty));
    }
}
