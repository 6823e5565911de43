//! What of the bytes that the daemon served by itself was no hit.

use std::collections::HashMap;

/// By dataset, bytes that were fetched because a reader wanted others of the same chunk. When it reads on, the daemon finds them present and
/// tells so, but they were on no cache node before the reader came: no hits.
#[derive(Debug, Default)]
pub(super) struct Debts(HashMap<String, u64>);

impl Debts {
    pub(super) fn owe(&mut self, uid: &str, bytes: u64) {
        *self.0.entry(uid.to_owned()).or_default() += bytes;
    }

    /// How many of these bytes are no hits.
    pub(super) fn pay(&mut self, uid: &str, bytes: u64) -> u64 {
        let Some(debt) = self.0.get_mut(uid) else { return 0 };
        let paid = bytes.min(*debt);
        *debt -= paid;
        paid
    }

    /// No file of the dataset is open: the rest will not be read, or is a hit by now.
    pub(super) fn forgive(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}
