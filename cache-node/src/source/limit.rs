//! How many requests an endpoint gets at once: as many as it takes gladly. An answer that says "slow down" halves the number, each good one
//! raises it a little, as TCP does with its window. Whoever waits for a turn gets it in the order of asking, and who waits to try again has none.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Most requests of this process to one endpoint.
const MOST: usize = 256;
/// Fewest, however overloaded it is.
const FEWEST: usize = 4;
/// Refusals within so long are of one overload: they were all sent before the first was answered.
const ONE_OVERLOAD: Duration = Duration::from_secs(1);
/// So many good answers to each request in flight raise the number by one: 1/4 makes it double within four rounds at worst.
const ROUND: f64 = 0.25;

/// The requests to one endpoint.
#[derive(Debug)]
pub struct Limiter {
    turns: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Turns to be taken back when they end.
    surplus: usize,
    /// Part of the next turn to be added.
    credit: f64,
    last_overload: Option<Instant>,
}

/// Permission for one request. Ends when dropped.
#[derive(Debug)]
pub struct Turn {
    limiter: Arc<Limiter>,
    permit: Option<OwnedSemaphorePermit>,
}

/// One limiter for each endpoint, whatever Datasets read from it: the server sees one client.
static LIMITERS: LazyLock<Mutex<HashMap<String, Weak<Limiter>>>> = LazyLock::new(Mutex::default);

impl Limiter {
    /// The limiter of an endpoint.
    pub fn of(endpoint: &str) -> Arc<Self> {
        let mut limiters = LIMITERS.lock();
        if let Some(limiter) = limiters.get(endpoint).and_then(Weak::upgrade) {
            return limiter;
        }
        let limiter = Arc::new(Self::new());
        limiters.retain(|_, limiter| limiter.strong_count() > 0);
        limiters.insert(endpoint.to_owned(), Arc::downgrade(&limiter));
        limiter
    }

    fn new() -> Self {
        let state = State { limit: MOST, surplus: 0, credit: 0.0, last_overload: None };
        Self { turns: Arc::new(Semaphore::new(MOST)), state: Mutex::new(state) }
    }

    /// Waits for a turn.
    pub async fn turn(self: &Arc<Self>) -> Turn {
        // Never closed.
        let permit = Arc::clone(&self.turns).acquire_owned().await.ok();
        Turn { limiter: Arc::clone(self), permit }
    }

    /// A turn if there is one right now.
    pub fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        let permit = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(Turn { limiter: Arc::clone(self), permit: Some(permit) })
    }

    /// A request was answered well.
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        if state.limit >= MOST {
            return;
        }
        state.credit += 1.0 / (state.limit as f64 * ROUND).max(1.0);
        if state.credit >= 1.0 {
            state.credit -= 1.0;
            state.limit += 1;
            if state.surplus > 0 {
                state.surplus -= 1;
            } else {
                self.turns.add_permits(1);
            }
        }
    }

    /// The endpoint said that it has too much to do.
    pub fn overloaded(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.last_overload.is_some_and(|last| now.duration_since(last) < ONE_OVERLOAD) {
            return;
        }
        state.last_overload = Some(now);
        state.credit = 0.0;
        let limit = (state.limit / 2).max(FEWEST);
        let fewer = state.limit - limit;
        state.limit = limit;
        state.surplus += fewer - self.turns.forget_permits(fewer);
        tracing::debug!(limit, "an endpoint is overloaded; it gets fewer requests at once");
    }

    /// How many requests may be under way at once.
    pub fn limit(&self) -> usize {
        self.state.lock().limit
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.limiter.state.lock();
        if state.surplus > 0
            && let Some(permit) = self.permit.take()
        {
            state.surplus -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn all_now(limiter: &Arc<Limiter>) -> Vec<Turn> {
        std::iter::from_fn(|| limiter.try_turn()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_overload_halves_what_is_under_way_and_good_answers_raise_it_again() {
        let limiter = Arc::new(Limiter::new());
        let turns = all_now(&limiter);
        assert_eq!(turns.len(), MOST);
        // Many refusals of one overload are one.
        for _ in 0..100 {
            limiter.overloaded();
        }
        assert_eq!(limiter.limit(), MOST / 2);
        drop(turns);
        assert_eq!(all_now(&limiter).len(), MOST / 2);
        for _ in 0..20 {
            tokio::time::advance(ONE_OVERLOAD).await;
            limiter.overloaded();
        }
        let turns = all_now(&limiter);
        assert_eq!(turns.len(), FEWEST);
        assert!(limiter.turn().now_or_never().is_none(), "the fifth waits");
        drop(turns);
        let mut answers = 0;
        while limiter.limit() < MOST {
            limiter.succeeded();
            answers += 1;
        }
        assert!((5_000..10_000).contains(&answers), "{answers}");
        assert_eq!(all_now(&limiter).len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_raised_while_a_surplus_is_out_are_not_counted_twice() {
        let limiter = Arc::new(Limiter::new());
        let turns = all_now(&limiter);
        limiter.overloaded();
        for _ in 0..100_000 {
            limiter.succeeded();
        }
        assert!(limiter.try_turn().is_none());
        drop(turns);
        assert_eq!(all_now(&limiter).len(), MOST);
    }

    #[test]
    fn an_endpoint_has_one_limiter_as_long_as_anybody_uses_it() {
        let one = Limiter::of("http://h:1");
        assert!(Arc::ptr_eq(&one, &Limiter::of("http://h:1")));
        assert!(!Arc::ptr_eq(&one, &Limiter::of("http://h:2")));
    }
}
