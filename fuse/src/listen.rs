//! Which of a session's threads reads the next request, and how it waits for it. One listens and the others rest: a request wakes nobody who does
//! not answer it. Readers who ask one small thing after the other are listened to without sleep for a moment after each answer, since to sleep and
//! be woken takes several times as long as the answer (`docs/performance.md`).
//!
//! Who answers something quick listens on, and nobody else does meanwhile. What is quick may still wait for a disk: names and attributes are read from
//! a catalog's mapped image. That can't be known before without a system call for each request (mincore), nor be noticed by who is blocked, nor by who
//! rests, without waking up for it. So the first answer that takes long is waited for by all, and the ones after it by nobody but their readers: how
//! long an answer took is known for nothing, since both its ends are looked at for the habit.

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

/// An answer that took so long has waited, most likely for a disk.
const LONG: Duration = Duration::from_millis(1);

/// So many requests are then answered while somebody else listens, before it is seen whether the disk is still waited for. A thread that was only kept
/// from a processor has made so many wake another in vain.
const AFTER_LONG: u32 = 32;

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
    /// So many requests more are answered by one thread while another listens.
    hand_on: u32,
}

/// The right to read the next request.
pub struct Turn<'a> {
    habit: MutexGuard<'a, Habit>,
    /// Since when its thread has been answering what it read.
    answering: Option<Instant>,
}

impl Listening {
    /// Waits until nobody else listens.
    pub fn turn(&self) -> Turn<'_> {
        Turn { habit: self.habit.lock().unwrap_or_else(PoisonError::into_inner), answering: None }
    }
}

impl Turn<'_> {
    /// Waits for a request and reads it into `buffer`; its length.
    pub fn read(&mut self, session: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        let began = Instant::now();
        if let Some(since) = self.answering.take() {
            self.habit.answered_in(began.saturating_duration_since(since));
        }
        if self.habit.stays_awake() {
            while !has_request(session) && began.elapsed() < AWAKE {
                // Whoever else wants this processor goes first.
                std::thread::yield_now();
            }
        }
        let length = rustix::io::read(session, buffer)?;
        let read = Instant::now();
        self.habit.came_after(read.saturating_duration_since(began));
        self.answering = Some(read);
        Ok(length)
    }

    /// The request that was read takes so long: whether its thread shall answer it and then listen on.
    pub fn goes_on(&mut self, pace: Pace) -> bool {
        self.habit.awaited = pace != Pace::Ahead;
        pace == Pace::Quick && self.habit.listens_on()
    }
}

impl Habit {
    fn stays_awake(&self) -> bool {
        self.awaited && self.late < IN_VAIN
    }

    fn answered_in(&mut self, time: Duration) {
        if time > LONG {
            self.hand_on = AFTER_LONG;
        }
    }

    fn listens_on(&mut self) -> bool {
        let hands_on = self.hand_on > 0;
        self.hand_on = self.hand_on.saturating_sub(1);
        !hands_on
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
    fn after_an_answer_that_waited_for_a_disk_others_listen_for_a_while() {
        let listening = Listening::default();
        let mut turn = listening.turn();
        turn.habit.answered_in(AWAKE);
        assert!(turn.goes_on(Pace::Quick));
        for _ in 0..2 {
            turn.habit.answered_in(LATE);
            for _ in 0..AFTER_LONG {
                assert!(!turn.goes_on(Pace::Quick));
            }
            assert!(turn.goes_on(Pace::Quick), "to see whether the disk is still slow");
        }
    }

    #[test]
    fn how_long_an_answer_took_is_noticed_by_who_listens_on() {
        let (session, requests) = rustix::pipe::pipe().unwrap();
        let listening = Listening::default();
        let mut turn = listening.turn();
        for _ in 0..2 {
            rustix::io::write(&requests, b"request!").unwrap();
            assert_eq!(turn.read(&session, &mut [0; 8]), Ok(8));
        }
        // As if it had been read before.
        turn.answering = turn.answering.and_then(|read| read.checked_sub(LATE));
        rustix::io::write(&requests, b"request!").unwrap();
        assert_eq!(turn.read(&session, &mut [0; 8]), Ok(8));
        assert_eq!(turn.habit.hand_on, AFTER_LONG);
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
