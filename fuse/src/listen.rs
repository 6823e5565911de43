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
