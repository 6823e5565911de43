//! Answers of the API server that may be a few seconds old, so that many Datasets that name one Secret ask for it once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Values by key, each for a limited time.
pub struct TtlCache<K, V> {
    life: Duration,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash + Clone, V: Clone> TtlCache<K, V> {
    /// An empty cache whose values live for `life`.
    pub fn new(life: Duration) -> Self {
        Self { life, entries: Mutex::default() }
    }

    /// The value of `key`, from `load` when it is not known or too old. Errors are not kept.
    pub async fn get<E>(&self, key: &K, load: impl Future<Output = Result<V, E>>) -> Result<V, E> {
        let fresh = |at: Instant| at.elapsed() < self.life;
        {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.retain(|_, (at, _)| fresh(*at));
            if let Some((_, value)) = entries.get(key) {
                return Ok(value.clone());
            }
        }
        let value = load.await?;
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone(), (Instant::now(), value.clone()));
        Ok(value)
    }
}
