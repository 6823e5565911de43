//! Single flight: of several who want the same thing at once, one gets it and all have it. The work runs in a task of its own, so that it
//! goes on when who began it gives up.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

type Flight<V> = Shared<BoxFuture<'static, Option<V>>>;

/// Work in progress, by what it is for.
#[derive(Debug)]
pub struct SingleFlight<K, V: Clone> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

impl<K, V: Clone> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the work for `key`: of the flight that is under way, or else of `work`. None when the work panicked.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let flight = {
            let mut flights = self.flights.lock();
            if let Some(flight) = flights.get(&key) {
                flight.clone()
            } else {
                let landing = Landing { flights: Arc::clone(&self.flights), key: key.clone() };
                let work = work();
                let task = tokio::spawn(async move {
                    // Dropped at the end, also when the work panics.
                    let _landing = landing;
                    work.await
                });
                let flight = task.map(Result::ok).boxed().shared();
                flights.insert(key, flight.clone());
                flight
            }
        };
        flight.await
    }
}

struct Landing<K: Eq + Hash, V: Clone> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let flight = self.flights.lock().remove(&self.key);
        // Outside the lock: it may be the last holder of a large result.
        drop(flight);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_at_once_get_the_result_of_one() {
        let flights = Arc::new(SingleFlight::<u32, usize>::default());
        let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let (flights, gate, begun) = (Arc::clone(&flights), Arc::clone(&gate), Arc::clone(&begun));
            tokio::spawn(async move {
                let work = || async move {
                    let number = begun.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    number
                };
                flights.run(7, work).await
            })
        };
        let asked: Vec<_> = (0..10).map(|_| ask()).collect();
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // Who gives up does not stop the work.
        let mut asked = asked.into_iter();
        asked.next().unwrap().abort();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(10);
        for handle in asked {
            assert_eq!(handle.await.unwrap(), Some(0));
        }
        assert_eq!(ask().await.unwrap(), Some(1), "a later one flies anew");
    }

    #[tokio::test]
    async fn a_panic_ends_the_flight_and_not_the_others() {
        let flights = SingleFlight::<u32, u32>::default();
        assert_eq!(flights.run(1, || async { panic!("on purpose") }).await, None);
        assert_eq!(flights.run(1, || async { 5 }).await, Some(5));
    }
}
