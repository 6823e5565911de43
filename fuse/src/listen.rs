//! Which of a session's threads reads the next request, and how it waits for it. One listens and the others rest: a request wakes nobody who does
//! not answer it. Readers who ask one small thing after the other are listened to without sleep for a moment after each answer, since to sleep and
//! be woken takes several times as long as the answer (`docs/performance.md`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::objects::Pace;

/// How long a thread listens without sleep: until the reader has been woken by the last answer (up to 50 us on another processor) and has asked again.
const AWAKE: Duration = Duration::from_micros(100);

/// A request that came so soon would have been heard: [`AWAKE`], and what it takes to be woken.
const SOON: Duration = Duration::from_micros(200);

/// After so many times in vain the threads sleep at once, until requests come soon again.
const IN_VAIN: u32 = 4;

/// What the threads of a session agree by.
#[derive(Debug, Default)]
pub struct Listening {
    habit: Mutex<Habit>,
}

/// How requests have come lately.
#[derive(Debug, Default)]
struct Habit {
    /// Requests in a row that did not come soon after the last one.
    late: u32,
    /// Whether the last request was one whose reader waits for the answer, and may soon ask again.
    awaited: bool,
}

/// The right to read the next request.
pub struct Turn<'a> {
    habit: MutexGuard<'a, Habit>,
}

impl Listening {
    /// Waits until nobody else listens.
    pub fn turn(&self) -> Turn<'_> {
        Turn { habit: self.habit.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Turn<'_> {
    /// Waits for a request and reads it into `buffer`; its length.
    pub fn read(&mut self, session: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        let began = Instant::now();
        if self.habit.stays_awake() {
            while !has_request(session) && began.elapsed() < AWAKE {
                // Whoever else wants this processor goes first.
                std::thread::yield_now();
            }
        }
        let length = rustix::io::read(session, buffer)?;
        self.habit.came_after(began.elapsed());
        Ok(length)
    }

    /// The request that was read takes so long: whether its thread shall answer it and then listen on.
    pub fn goes_on(&mut self, pace: Pace) -> bool {
        self.habit.awaited = pace != Pace::Ahead;
        pace == Pace::Quick
    }
}

impl Habit {
    fn stays_awake(&self) -> bool {
        self.awaited && self.late < IN_VAIN
    }

    fn came_after(&mut self, time: Duration) {
        self.late = if time < SOON { 0 } else { self.late.saturating_add(1) };
    }
}

/// Whether a request waits to be read, or the session has ended.
pub fn has_request(session: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(session.as_fd(), PollFlags::IN)];
    // An error is for the read to find.
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(1);

    #[test]
    fn who_asks_quickly_is_listened_to_without_sleep_and_who_does_not_is_not() {
        let listening = Listening::default();
        let mut turn = listening.turn();
        assert!(!turn.habit.stays_awake(), "nobody has asked yet");
        assert!(turn.goes_on(Pace::Quick) && turn.habit.stays_awake());
        for _ in 0..IN_VAIN {
            assert!(turn.habit.stays_awake());
            turn.habit.came_after(LATE);
        }
        assert!(!turn.habit.stays_awake(), "in vain so often");
        turn.habit.came_after(AWAKE);
        assert!(turn.habit.stays_awake());
        assert!(!turn.goes_on(Pace::Waits) && turn.habit.stays_awake(), "a reader waits for the answer to an open");
        assert!(!turn.goes_on(Pace::Ahead) && !turn.habit.stays_awake(), "nobody waits for a read-ahead");
    }

    #[test]
    fn one_listens_at_a_time_and_the_next_goes_on() {
        let (session, requests) = rustix::pipe::pipe().unwrap();
        let listening = Listening::default();
        let (mut first, mut second) = ([0; 8], [0; 8]);
        std::thread::scope(|scope| {
            let mut turn = listening.turn();
            assert!(!has_request(&session));
            rustix::io::write(&requests, b"first").unwrap();
            assert!(has_request(&session));
            let other = scope.spawn(|| listening.turn().read(&session, &mut second));
            assert_eq!(turn.read(&session, &mut first), Ok(5));
            assert!(!other.is_finished(), "it waits for its turn");
            drop(turn);
            rustix::io::write(&requests, b"second").unwrap();
            assert_eq!(other.join().unwrap(), Ok(6));
        });
        assert_eq!((&first[..5], &second[..6]), (&b"first"[..], &b"second"[..]));
    }
}
