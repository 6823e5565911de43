//! What to load ahead for readers of many small files: what follows in order, for who reads in order; all of a folder, then of the dataset, for
//! who reads it in random order. Only decides: positions in the order of the keys and times go in, positions to load come out.
//!
//! A reader whose file is there may be served by the kernel alone and is not seen, so what is missed is what counts. In order, a miss at the
//! end of what was loaded shows that all of it was read. At random nothing shows that, so what may be loaded is a multiple of what was asked for.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

/// Requests in a row that make an order: in a small folder some follow each other by chance.
const RUN: u32 = 4;
/// So many files may be left out, or asked for out of turn, by who reads in order ...
const SLACK: usize = 8;
/// ... and so many of those that are on their way may be asked for before they are here.
const ON_THE_WAY: usize = 64;
/// Files that are loaded ahead at first ...
const FIRST_WINDOW: usize = 16;
/// ... and at most, doubled each time the reader has come through half of them.
const LAST_WINDOW: usize = 1024;
/// Readers in order that are told apart.
const STREAMS: usize = 32;

/// Different files missed out of order ...
const SHUFFLED: usize = 32;
/// ... within so long are an epoch in random order.
const WITHIN: Duration = Duration::from_secs(5);
/// For each file that readers ask for so many are loaded at first ...
const FIRST_SHARE: usize = 8;
/// ... and later, doubled with each further [`SHUFFLED`] requests: as many as may be in flight, so that one reader keeps the source busy.
const LAST_SHARE: usize = 64;
/// Most that may be saved up.
const SAVED: usize = 4 * LAST_WINDOW;

/// After so long without a request nobody reads any more.
pub const QUIET: Duration = Duration::from_secs(3);

/// The readers of one dataset's small files.
#[derive(Debug, Default)]
pub struct Readers {
    streams: Vec<Stream>,
    /// What was missed lately.
    missed: VecDeque<(Instant, usize)>,
    /// Of that, what neither goes on with an order nor belongs to the epoch.
    astray: VecDeque<(Instant, usize)>,
    epoch: Option<Epoch>,
    last_request: Option<Instant>,
}

/// A reader in order.
#[derive(Debug)]
struct Stream {
    /// The next file that it will ask for.
    next: usize,
    /// The next one to load.
    cursor: usize,
    /// Up to which to load.
    end: usize,
    window: usize,
    run: u32,
    at: Instant,
}

/// Readers in random order.
#[derive(Debug)]
struct Epoch {
    scope: Range<usize>,
    /// The next one to load.
    cursor: usize,
    /// How many may be loaded.
    allowance: usize,
    share: usize,
    requests: usize,
}

impl Readers {
    /// A reader asks for the file at a position; `missed`: it was not here. `folder` are the positions of its folder (of no matter when it was
    /// here), `all` is how many there are.
    pub fn asked(&mut self, at: usize, missed: bool, folder: Range<usize>, all: usize, now: Instant) {
        self.last_request = Some(now);
        if missed && !self.remember(at, now) {
            // It was here a moment ago: what is loaded does not stay.
            self.stop();
            return;
        }
        if let Some(epoch) = &mut self.epoch
            && (!missed || epoch.scope.contains(&at))
        {
            epoch.asked();
            return;
        }
        if !self.advance(at, missed, all, now) && missed {
            self.stray(at, folder, all, now);
        }
    }

    /// The next file to load, if one is worth it.
    pub fn next(&mut self) -> Option<usize> {
        // Who reads in order waits soonest. The one that was asked for least recently first: it has the least ahead.
        let stream = self.streams.iter_mut().filter(|stream| stream.cursor < stream.end).min_by_key(|stream| stream.at);
        if let Some(stream) = stream {
            stream.cursor += 1;
            return Some(stream.cursor - 1);
        }
        let epoch = self.epoch.as_mut()?;
        if epoch.allowance == 0 || epoch.cursor >= epoch.scope.end {
            return None;
        }
        epoch.allowance -= 1;
        epoch.cursor += 1;
        Some(epoch.cursor - 1)
    }

    /// Nothing had to be done for the file that [`Readers::next`] gave: it was here.
    pub fn was_here(&mut self) {
        if let Some(epoch) = &mut self.epoch {
            epoch.allowance += 1;
        }
    }

    /// Whether hits tell anything: something is being loaded.
    pub fn is_active(&self) -> bool {
        self.epoch.is_some() || self.streams.iter().any(|stream| stream.window > 0)
    }

    /// Ends what nobody needs any more.
    pub fn settle(&mut self, now: Instant) {
        if self.last_request.is_none_or(|at| now.duration_since(at) >= QUIET) {
            self.stop();
        }
        self.streams.retain(|stream| now.duration_since(stream.at) < QUIET);
    }

    /// Loads nothing more until readers show again that it is worth it.
    pub fn stop(&mut self) {
        self.streams.clear();
        self.missed.clear();
        self.astray.clear();
        self.epoch = None;
    }

    /// Takes note of a miss; false when the same one was noted before.
    fn remember(&mut self, at: usize, now: Instant) -> bool {
        while self.missed.len() > LAST_WINDOW
            || self.missed.front().is_some_and(|(then, _)| now.duration_since(*then) > WITHIN)
        {
            self.missed.pop_front();
        }
        let is_new = !self.missed.iter().any(|(_, before)| *before == at);
        self.missed.push_back((now, at));
        is_new
    }

    /// Whether the request goes on where one in order left off.
    fn advance(&mut self, at: usize, missed: bool, all: usize, now: Instant) -> bool {
        let nearest = self.streams.iter_mut().filter(|stream| stream.goes_on_at(at, missed));
        if let Some(stream) = nearest.min_by_key(|stream| stream.next.abs_diff(at)) {
            stream.next = stream.next.max(at + 1);
            stream.run = stream.run.saturating_add(1);
            stream.at = now;
            stream.extend(all);
            return true;
        }
        if self.streams.len() >= STREAMS
            && let Some(oldest) = (0..self.streams.len()).min_by_key(|index| self.streams.get(*index).map(|s| s.at))
        {
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Stream { next: at + 1, cursor: at + 1, end: at + 1, window: 0, run: 1, at: now });
        false
    }

    fn stray(&mut self, at: usize, folder: Range<usize>, all: usize, now: Instant) {
        while self.astray.front().is_some_and(|(then, _)| now.duration_since(*then) > WITHIN) {
            self.astray.pop_front();
        }
        self.astray.push_back((now, at));
        if self.astray.len() >= SHUFFLED {
            let one_folder = self.astray.iter().all(|(_, at)| folder.contains(at));
            self.epoch = Some(Epoch::over(if one_folder { folder } else { 0..all }));
            self.astray.clear();
            // What is in order by chance is part of it.
            self.streams.clear();
        }
    }
}

impl Stream {
    fn goes_on_at(&self, at: usize, missed: bool) -> bool {
        if self.window == 0 {
            return (self.next..=self.next + 1).contains(&at);
        }
        let near_reader = self.next.saturating_sub(SLACK)..=self.next + SLACK;
        // What lies between was read without being seen.
        let near_loads = self.cursor.saturating_sub(ON_THE_WAY).max(self.next)..=self.cursor + SLACK;
        near_reader.contains(&at) || (missed && near_loads.contains(&at))
    }

    fn extend(&mut self, all: usize) {
        if self.run < RUN || (self.window > 0 && self.next + self.window / 2 < self.end) {
            return;
        }
        self.window = (self.window * 2).clamp(FIRST_WINDOW, LAST_WINDOW);
        self.cursor = self.cursor.max(self.next);
        self.end = self.end.max(self.next + self.window).min(all);
    }
}

impl Epoch {
    fn over(scope: Range<usize>) -> Self {
        Self { cursor: scope.start, scope, allowance: FIRST_SHARE * SHUFFLED, share: FIRST_SHARE, requests: 0 }
    }

    fn asked(&mut self) {
        self.requests += 1;
        if self.requests.is_multiple_of(SHUFFLED) {
            self.share = (self.share * 2).min(LAST_SHARE);
        }
        self.allowance = (self.allowance + self.share).min(SAVED);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Readers, and what is here: a simulation in which each request lets so many loads finish.
    struct World {
        readers: Readers,
        here: HashSet<usize>,
        loaded: usize,
        missed: usize,
        most_wanted: usize,
        all: usize,
        folder: usize,
        now: Instant,
    }

    impl World {
        fn new(all: usize, folder: usize) -> Self {
            let now = Instant::now();
            let readers = Readers::default();
            Self { readers, here: HashSet::new(), loaded: 0, missed: 0, most_wanted: 0, all, folder, now }
        }

        fn read(&mut self, at: usize, loads: usize) {
            self.now += Duration::from_millis(1);
            let missed = self.here.insert(at);
            self.missed += usize::from(missed);
            let folder = at / self.folder * self.folder;
            self.readers.asked(at, missed, folder..(folder + self.folder).min(self.all), self.all, self.now);
            let mut wanted = 0;
            while wanted < loads {
                let Some(next) = self.readers.next() else { break };
                if self.here.insert(next) {
                    wanted += 1;
                    self.loaded += 1;
                } else {
                    self.readers.was_here();
                }
            }
            self.most_wanted = self.most_wanted.max(wanted);
        }
    }

    fn shuffled(count: usize, seed: u64) -> Vec<usize> {
        let mut order: Vec<_> = (0..count).collect();
        let mut state = seed | 1;
        for i in (1..count).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(i, (state >> 33) as usize % (i + 1));
        }
        order
    }

    #[test]
    fn in_order_nearly_everything_is_there_before_it_is_asked_for() {
        let mut world = World::new(20_000, 1000);
        for at in 0..20_000 {
            world.read(at, 64);
        }
        assert!(world.missed <= 20, "{} missed", world.missed);
        assert_eq!((world.most_wanted, world.missed + world.loaded), (64, 20_000));
    }

    #[test]
    fn workers_that_each_read_a_part_in_order_are_told_apart() {
        let mut world = World::new(20_000, 20_000);
        for step in 0..1250 {
            for worker in 0..16 {
                world.read(worker * 1250 + step, 4);
            }
        }
        assert!(world.missed <= 16 * 8 && world.missed + world.loaded == 20_000, "{} missed", world.missed);
    }

    #[test]
    fn in_random_order_most_is_there_before_it_is_asked_for() {
        for folder in [20_000, 100] {
            let mut world = World::new(20_000, folder);
            for at in shuffled(20_000, 7) {
                world.read(at, 64);
            }
            assert!(world.missed <= 700, "{} missed", world.missed);
            assert_eq!((world.most_wanted, world.missed + world.loaded), (64, 20_000));
        }
    }

    #[test]
    fn a_folder_that_is_read_at_random_brings_its_own_files_only() {
        let mut world = World::new(100_000, 500);
        for at in shuffled(500, 3) {
            world.read(1000 + at, 64);
        }
        assert_eq!(world.here.len(), 500);
    }

    #[test]
    fn a_few_files_here_and_there_bring_nothing_and_a_sample_a_bounded_lot() {
        let mut world = World::new(1_000_000, 1000);
        for at in shuffled(1_000_000, 5).into_iter().take(SHUFFLED - 1) {
            world.read(at, 64);
        }
        assert_eq!(world.loaded, 0);
        let mut slow = World::new(1_000_000, 1000);
        for at in shuffled(1_000_000, 5).into_iter().take(500) {
            slow.now += WITHIN;
            slow.read(at, 64);
        }
        assert!(slow.loaded < 100, "{}: one in five seconds is no epoch", slow.loaded);
        for at in shuffled(1_000_000, 6).into_iter().take(200) {
            world.read(at, 1 << 20);
        }
        assert!(world.loaded <= 200 * LAST_SHARE, "{}", world.loaded);
    }

    #[test]
    fn it_ends_when_readers_end_and_when_what_is_loaded_does_not_stay() {
        let mut world = World::new(100_000, 100_000);
        for at in 0..100 {
            world.read(at, 1);
        }
        for at in shuffled(50_000, 5).into_iter().take(100) {
            world.read(50_000 + at, 1);
        }
        assert!(world.readers.is_active() && world.readers.next().is_some());
        world.readers.settle(world.now + QUIET);
        assert!(!world.readers.is_active() && world.readers.next().is_none());

        for at in shuffled(50_000, 5).into_iter().skip(100).take(100) {
            world.read(50_000 + at, 1);
        }
        assert!(world.readers.is_active());
        let evicted = 50_000 + shuffled(50_000, 5)[199];
        world.here.remove(&evicted);
        world.read(evicted, 0);
        assert!(!world.readers.is_active());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn whatever_is_asked_for_only_what_exists_is_loaded_and_only_a_multiple(requests in proptest::collection::vec((0_usize..3000, 0_usize..200), 1..500), folder in 1_usize..3000) {
            let mut world = World::new(3000, folder);
            let count = requests.len();
            for (at, loads) in requests {
                world.read(at, loads);
            }
            prop_assert!(world.here.iter().all(|at| *at < 3000));
            prop_assert!(world.loaded <= count * (LAST_SHARE + LAST_WINDOW));
        }
    }
}
