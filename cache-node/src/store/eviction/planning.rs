//! One plan in the making: walks the queues in the request's scope as if they were one, and asks the store about each object that it meets.

use super::fifo::{self, Entry, Fifo};
use super::{
    ASKED_AGAIN, Class, DatasetSlot, Eviction, LIVES, Lane, Lanes, Request, SMALL_PERCENT, STEPS, Side, Standing,
    Victim, View,
};

/// One plan in the making.
pub(super) struct Planning<'a, V> {
    order: &'a mut Eviction,
    request: Request<'a>,
    view: &'a mut V,
    /// Pages of small and main queues in the scope, of all classes.
    small: u64,
    main: u64,
    /// What shall be of both in the end.
    target: u64,
    pub(super) victims: Vec<Victim>,
    pub(super) freed: u64,
    pub(super) steps: usize,
}

impl<'a, V: View> Planning<'a, V> {
    pub(super) fn new(order: &'a mut Eviction, request: Request<'a>, view: &'a mut V) -> Self {
        let scope = order.lanes.iter().filter(|(dataset, _)| (request.scope)(**dataset)).map(|(_, lanes)| lanes);
        let (small, main) = scope
            .flat_map(Lanes::pairs)
            .fold((0, 0), |(small, main), pair| (small + pair.small.pages(), main + pair.main.pages()));
        let target = request.target / fifo::PAGE;
        Self { order, request, view, small, main, target, victims: Vec::new(), freed: 0, steps: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.freed >= self.request.bytes || self.steps >= STEPS
    }

    pub(super) fn has(&self, lane: Lane) -> bool {
        self.first(lane, Side::Small).or(self.first(lane, Side::Main)).is_some()
    }

    /// The dataset in the scope whose queue has the oldest head, and that head's number.
    fn first(&self, lane: Lane, side: Side) -> Option<(DatasetSlot, u64)> {
        let heads = self.fifos(lane, side).filter_map(|(dataset, fifo)| Some((dataset, fifo.head()?)));
        heads.min_by_key(|(_, head)| *head)
    }

    fn pop(&mut self, lane: Lane, side: Side) -> Option<(DatasetSlot, Entry, u64)> {
        let (dataset, head) = self.first(lane, side)?;
        let entry = self.order.lanes.get_mut(&dataset)?.pair(lane).of(side).pop()?;
        self.steps += 1;
        match side {
            Side::Small => self.small -= u64::from(entry.pages),
            Side::Main => {
                self.order.main -= 1;
                self.main -= u64::from(entry.pages);
            }
        }
        Some((dataset, entry, head))
    }

    fn push(&mut self, dataset: DatasetSlot, lane: Lane, side: Side, entry: Entry, at: Option<u64>) {
        match side {
            // It has moved to a dataset that is none of this plan's.
            _ if !(self.request.scope)(dataset) => {}
            Side::Small => self.small += u64::from(entry.pages),
            Side::Main => self.main += u64::from(entry.pages),
        }
        match at {
            Some(sequence) => self.order.push_at(dataset, lane, side, entry, sequence),
            None => self.order.push(dataset, lane, side, entry),
        }
    }

    /// Asks for the classes of some objects that came last, or whose class may be another one now.
    pub(super) fn sort(&mut self, most: usize) {
        for n in 0..most {
            let sides = if n % 2 == 0 { [Side::Small, Side::Main] } else { [Side::Main, Side::Small] };
            let popped = sides.into_iter().find_map(|side| Some((side, self.pop(Lane::Unsorted, side)?)));
            let Some((side, (_, entry, head))) = popped else { return };
            if let Some((dataset, class)) = self.view.class(&entry.id) {
                self.push(dataset, Lane::Sorted(class), side, entry, Some(head));
            }
        }
    }

    /// A pin may end by time, which nobody tells.
    pub(super) fn ask_pinned_again(&mut self) {
        let lane = Lane::Sorted(Class::Pinned);
        for side in [Side::Small, Side::Main] {
            for _ in 0..ASKED_AGAIN.min(self.count(lane, side)) {
                let Some((_, entry, _)) = self.pop(lane, side) else { break };
                if let Some((dataset, class)) = self.view.class(&entry.id) {
                    self.push(dataset, Lane::Sorted(class), side, entry, None);
                }
            }
        }
    }

    /// Evicts of one class until it is enough, or the class is done with.
    pub(super) fn evict(&mut self, class: Class) {
        let lane = Lane::Sorted(class);
        // What is in use comes round again: once is enough. What was read in main comes twice, also when it was in small before.
        let mut small_left = self.count(lane, Side::Small);
        let mut main_left = 2 * (small_left + self.count(lane, Side::Main));
        while !self.is_done() {
            let small = small_left > 0 && self.first(lane, Side::Small).is_some();
            let main = main_left > 0 && self.first(lane, Side::Main).is_some();
            if small && (self.main_has_room(0) || !main) {
                small_left -= 1;
                self.step_small(lane);
            } else if main {
                main_left -= 1;
                self.step_main(lane, true);
            } else {
                break;
            }
        }
    }

    fn count(&self, lane: Lane, side: Side) -> usize {
        self.fifos(lane, side).map(|(_, fifo)| fifo.len()).sum()
    }

    /// These queues of all datasets in the scope.
    fn fifos(&self, lane: Lane, side: Side) -> impl Iterator<Item = (DatasetSlot, &Fifo)> {
        let scope = self.request.scope;
        let lanes = self.order.lanes.iter().filter(move |(dataset, _)| scope(**dataset));
        lanes.filter_map(move |(dataset, lanes)| {
            let pair = match lane {
                Lane::Unsorted => &lanes.unsorted,
                Lane::Sorted(class) => lanes.sorted.get(class as usize)?,
            };
            Some((*dataset, if side == Side::Small { &pair.small } else { &pair.main }))
        })
    }

    fn main_has_room(&self, pages: u32) -> bool {
        (self.main + u64::from(pages)) * 100 <= self.target * (100 - SMALL_PERCENT)
    }

    fn step_small(&mut self, lane: Lane) {
        let Some((_, entry, _)) = self.pop(lane, Side::Small) else { return };
        let Some(standing) = self.view.standing(&entry.id) else { return };
        let dataset = standing.dataset;
        if standing.in_use || !(self.request.scope)(dataset) {
            let lives = u8::from(standing.read).max(entry.lives);
            return self.push(dataset, lane, Side::Small, Entry { lives, ..entry }, None);
        }
        if standing.read || entry.lives > 0 {
            while !self.main_has_room(entry.pages)
                && self.steps < STEPS
                && self.first(lane, Side::Main).is_some()
                && self.order.pace.step()
            {
                self.step_main(lane, false);
            }
        }
        if self.main_has_room(entry.pages) {
            self.push(dataset, lane, Side::Main, Entry { lives: LIVES, ..entry }, None);
        } else {
            self.goes(entry, standing);
        }
    }

    /// `forced`: main has to give something, so the hand takes the first that was not read.
    fn step_main(&mut self, lane: Lane, forced: bool) {
        let Some((_, entry, _)) = self.pop(lane, Side::Main) else { return };
        let Some(standing) = self.view.standing(&entry.id) else { return };
        let stays = standing.in_use || standing.read || !(self.request.scope)(standing.dataset);
        let lives = if stays { LIVES } else { entry.lives.saturating_sub(1) };
        if lives == 0 || forced && !stays {
            self.goes(entry, standing);
        } else {
            self.push(standing.dataset, lane, Side::Main, Entry { lives, ..entry }, None);
        }
    }

    fn goes(&mut self, entry: Entry, standing: Standing) {
        self.order.ghost.remember(&entry.id, self.order.main.max(1));
        self.freed += standing.bytes;
        self.victims.push(Victim { id: entry.id, dataset: standing.dataset, bytes: standing.bytes });
    }
}
