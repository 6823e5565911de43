//! How many requests an endpoint gets at once: as many as it takes gladly. An answer that says "slow down" halves the number, a round of good ones
//! raises it by one, as TCP does with its window. Whoever waits for a turn gets it in the order of asking, and who waits to try again has none.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most requests of this process to one endpoint at once, without those that are late.
const MOST: usize = 256;
/// Most late ones beside them: an endpoint that takes requests and never answers gets no more than both together.
const MOST_LATE: usize = 256;
/// Fewest, however overloaded it is.
const FEWEST: usize = 4;

/// The requests to one endpoint.
#[derive(Debug)]
pub struct Limiter {
    turns: Arc<Semaphore>,
    late: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Turns to be taken back when they end.
    surplus: usize,
    /// Part of the next turn to be added.
    credit: f64,
    /// How often the limit was halved. What a request that was sent before the last time says is of the overload that is known already.
    overloads: u64,
}

/// Permission for one request, until it is given back or dropped.
#[derive(Debug)]
pub struct Turn {
    limiter: Arc<Limiter>,
    holds: Mutex<Holds>,
    /// [`State::overloads`] when the turn was taken.
    overloads: u64,
}

/// What a request keeps others from having.
#[derive(Debug)]
enum Holds {
    Turn(OwnedSemaphorePermit),
    Late { _place: OwnedSemaphorePermit },
    Nothing,
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
        let state = State { limit: MOST, surplus: 0, credit: 0.0, overloads: 0 };
        let [turns, late] = [MOST, MOST_LATE].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { turns, late, state: Mutex::new(state) }
    }

    /// Waits for a turn.
    pub async fn turn(self: &Arc<Self>) -> Turn {
        // Never closed.
        let permit = Arc::clone(&self.turns).acquire_owned().await;
        self.taken(permit.map_or(Holds::Nothing, Holds::Turn))
    }

    /// A turn if there is one right now.
    pub fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        let permit = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(self.taken(Holds::Turn(permit)))
    }

    fn taken(self: &Arc<Self>, holds: Holds) -> Turn {
        let overloads = self.state.lock().overloads;
        Turn { limiter: Arc::clone(self), holds: Mutex::new(holds), overloads }
    }
}

impl Turn {
    /// The request was answered well.
    pub fn succeeded(&self) {
        self.raise();
        self.give_back();
    }

    /// The endpoint said that it has too much to do.
    pub fn overloaded(&self) {
        self.halve();
        self.give_back();
    }

    /// The request has ended: lets the next one go.
    pub fn give_back(&self) {
        self.hold(Holds::Nothing);
    }

    /// The request is late: lets the next one go while this one goes on, so that what is stuck keeps nobody waiting. False when too many are
    /// late already: it keeps its turn then.
    pub fn step_aside(&self) -> bool {
        if matches!(*self.holds.lock(), Holds::Late { .. }) {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.limiter.late).try_acquire_owned() else { return false };
        self.hold(Holds::Late { _place: permit });
        true
    }

    fn hold(&self, next: Holds) {
        let Holds::Turn(permit) = std::mem::replace(&mut *self.holds.lock(), next) else { return };
        let mut state = self.limiter.state.lock();
        if state.surplus > 0 {
            state.surplus -= 1;
            permit.forget();
        }
    }

    fn raise(&self) {
        let mut state = self.limiter.state.lock();
        if state.limit >= MOST || self.overloads != state.overloads {
            return;
        }
        // Fewer requests than it may have say nothing of more.
        if state.surplus > 0 || self.limiter.turns.available_permits() > 0 {
            return;
        }
        state.credit += 1.0 / state.limit as f64;
        if state.credit >= 1.0 {
            state.credit -= 1.0;
            state.limit += 1;
            self.limiter.turns.add_permits(1);
        }
    }

    fn halve(&self) {
        let mut state = self.limiter.state.lock();
        if self.overloads != state.overloads {
            return;
        }
        state.overloads += 1;
        state.credit = 0.0;
        let limit = (state.limit / 2).max(FEWEST);
        let fewer = state.limit - limit;
        state.limit = limit;
        state.surplus += fewer - self.limiter.turns.forget_permits(fewer);
        tracing::debug!(limit, "an endpoint is overloaded; it gets fewer requests at once");
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn all_now(limiter: &Arc<Limiter>) -> Vec<Turn> {
        std::iter::from_fn(|| limiter.try_turn()).collect()
    }

    fn limit(limiter: &Limiter) -> usize {
        limiter.state.lock().limit
    }

    /// All that the endpoint may be asked at once is asked and refused.
    fn refused(limiter: &Arc<Limiter>) -> usize {
        let turns = all_now(limiter);
        let count = turns.len();
        turns.iter().for_each(Turn::overloaded);
        count
    }

    /// The same, answered well.
    fn answered(limiter: &Arc<Limiter>) -> usize {
        let turns = all_now(limiter);
        let count = turns.len();
        // Each answer makes place for the next request.
        let mut next = Vec::new();
        for turn in turns {
            turn.succeeded();
            next.extend(limiter.try_turn());
        }
        count
    }

    #[test]
    fn an_overload_halves_what_may_be_under_way_and_a_round_of_good_answers_raises_it_by_one() {
        let limiter = Arc::new(Limiter::new());
        assert_eq!(refused(&limiter), MOST);
        // Many refusals of one overload are one.
        assert_eq!(limit(&limiter), MOST / 2);
        assert_eq!(refused(&limiter), MOST / 2);
        while refused(&limiter) > FEWEST {}
        let turns = all_now(&limiter);
        assert_eq!(turns.len(), FEWEST);
        assert!(limiter.turn().now_or_never().is_none(), "the fifth waits");
        drop(turns);
        for round in 0..MOST - FEWEST {
            let count = answered(&limiter);
            assert!((FEWEST + round).abs_diff(count) <= 1, "{count} at once in round {round}");
        }
        answered(&limiter);
        assert_eq!(all_now(&limiter).len(), MOST);
    }

    #[test]
    fn what_was_sent_before_an_overload_says_nothing_after_it() {
        let limiter = Arc::new(Limiter::new());
        let mut turns = all_now(&limiter);
        turns.pop().unwrap().overloaded();
        let (good, bad) = turns.split_at(100);
        bad.iter().for_each(Turn::overloaded);
        good.iter().for_each(Turn::succeeded);
        assert_eq!(limit(&limiter), MOST / 2);
        assert_eq!(all_now(&limiter).len(), MOST / 2);
    }

    #[test]
    fn what_is_stuck_gives_its_turn_to_the_next_and_only_once() {
        let limiter = Arc::new(Limiter::new());
        while refused(&limiter) > FEWEST {}
        let stuck = all_now(&limiter);
        let mut next = Box::pin(limiter.turn());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(stuck[0].step_aside() && stuck[0].step_aside());
        let next = next.now_or_never().expect("a turn is free");
        assert!(limiter.try_turn().is_none());
        drop((next, stuck));
        assert_eq!(all_now(&limiter).len(), FEWEST);
    }

    #[test]
    fn an_endpoint_that_never_answers_gets_no_more_than_so_many() {
        let limiter = Arc::new(Limiter::new());
        let mut stuck = Vec::new();
        while let Some(turn) = limiter.try_turn() {
            turn.step_aside();
            stuck.push(turn);
        }
        assert_eq!(stuck.len(), MOST + MOST_LATE);
        assert!(!stuck[stuck.len() - 1].step_aside(), "it keeps its turn");
        // What ends makes place for others again, late or not.
        stuck.remove(0);
        assert!(stuck[stuck.len() - 1].step_aside());
        assert!(limiter.try_turn().is_some());
    }

    #[test]
    fn good_answers_to_few_requests_do_not_allow_more() {
        let limiter = Arc::new(Limiter::new());
        refused(&limiter);
        for _ in 0..100_000 {
            limiter.try_turn().unwrap().succeeded();
        }
        assert_eq!(limit(&limiter), MOST / 2);
    }

    #[test]
    fn an_endpoint_has_one_limiter_as_long_as_anybody_uses_it() {
        let one = Limiter::of("http://h:1");
        assert!(Arc::ptr_eq(&one, &Limiter::of("http://h:1")));
        assert!(!Arc::ptr_eq(&one, &Limiter::of("http://h:2")));
    }
}
