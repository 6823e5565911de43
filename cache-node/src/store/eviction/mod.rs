//! What to evict: S3-FIFO over whole objects, weighted by bytes, with a main queue whose hand is paced ([`pace`]). Decides only, and knows objects by
//! what a [`View`] says of them; the store unlinks.
//!
//! Newcomers wait in a *small* queue (5 % of the bytes). Who was read again there, or comes back while the *ghost* remembers it, may move to *main*
//! when the hand finds something in main that has not been read for two rounds; everyone else leaves. So a scan goes through small and out, and
//! an epoch over more than fits keeps hitting what main holds. While main has room, it takes everyone.
//!
//! Queues are kept for each dataset and [`Class`]: what may not go now is never walked over, and a dataset above its capacity finds its own without
//! the others'. Sequence numbers put the queues of several datasets in one order, as if they were one. Classes are asked for lazily: a newcomer
//! waits unsorted until an eviction comes by.

mod fifo;
mod ghost;
mod pace;
mod planning;
pub mod policies;
pub mod traces;

use std::collections::BTreeMap;

use forebay_catalog::ObjectId;

use super::record::DatasetSlot;
use fifo::{Entry, Fifo, pages_of};
use ghost::Ghost;
use pace::Pace;
use planning::Planning;

/// Share of the small queue. The usual 10 % hits less on all of [`traces`]: what waits there is hardly ever hit.
const SMALL_PERCENT: u64 = 5;

/// Rounds of the hand that an object of main lives unread.
const LIVES: u8 = 2;

/// Most steps of one plan, so that whoever else needs the order waits for less than a millisecond or two.
const STEPS: usize = 1024;

/// Unsorted objects that a plan sorts at least, and pinned ones that it asks about again.
const SORTED: usize = 256;
const ASKED_AGAIN: usize = 32;

/// The order in which objects go: all of the first class before any of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A copy of what another node owns: it can be had again from a peer.
    Copy,
    /// This node's own part.
    Owned,
    /// To be kept as long as there is anything else.
    Pinned,
}

const CLASSES: [Class; 3] = [Class::Copy, Class::Owned, Class::Pinned];

/// What the store says about an object when it is its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whose it is now.
    pub dataset: DatasetSlot,
    /// What evicting it frees.
    pub bytes: u64,
    /// It is leased or written to.
    pub in_use: bool,
    /// It was read since this was last asked.
    pub read: bool,
}

/// The objects, as the store knows them. None: there is no such object (any more).
pub trait View {
    /// Whose an object is, and its class.
    fn class(&mut self, id: &ObjectId) -> Option<(DatasetSlot, Class)>;
    /// How it stands; forgets that it was read.
    fn standing(&mut self, id: &ObjectId) -> Option<Standing>;
}

/// What is to be freed.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// How much.
    pub bytes: u64,
    /// What the scope's objects shall take in the end, over however many requests; 95 % of it is main's.
    pub target: u64,
    /// The last class that may go.
    pub upto: Class,
    /// The datasets whose objects may go.
    pub scope: &'a dyn Fn(DatasetSlot) -> bool,
}

/// An object that is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Which.
    pub id: ObjectId,
    /// Whose.
    pub dataset: DatasetSlot,
    /// What that frees.
    pub bytes: u64,
}

/// What to evict now.
#[derive(Debug, Default)]
pub struct Plan {
    /// These; they are out of the order.
    pub victims: Vec<Victim>,
    /// Objects that were looked at.
    pub steps: usize,
    /// There was nothing else to look at. Otherwise another plan may find more.
    pub exhausted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Small,
    Main,
}

#[derive(Debug, Default)]
struct Pair {
    small: Fifo,
    main: Fifo,
}

impl Pair {
    fn of(&mut self, side: Side) -> &mut Fifo {
        match side {
            Side::Small => &mut self.small,
            Side::Main => &mut self.main,
        }
    }
}

/// The queues of one dataset.
#[derive(Debug, Default)]
struct Lanes {
    unsorted: Pair,
    sorted: [Pair; 3],
}

/// Which of a dataset's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Unsorted,
    Sorted(Class),
}

impl Lanes {
    fn pair(&mut self, lane: Lane) -> &mut Pair {
        match (lane, &mut self.sorted) {
            (Lane::Unsorted, _) => &mut self.unsorted,
            (Lane::Sorted(Class::Copy), [copy, _, _]) => copy,
            (Lane::Sorted(Class::Owned), [_, owned, _]) => owned,
            (Lane::Sorted(Class::Pinned), [_, _, pinned]) => pinned,
        }
    }

    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.sorted.iter().chain([&self.unsorted])
    }
}

/// The order of all objects.
#[derive(Debug, Default)]
pub struct Eviction {
    lanes: BTreeMap<DatasetSlot, Lanes>,
    ghost: Ghost,
    pace: Pace,
    sequence: u64,
    /// Objects in main queues, of all datasets.
    main: usize,
}

impl Eviction {
    /// An object has come; `bytes` is its whole size.
    pub fn insert(&mut self, id: ObjectId, dataset: DatasetSlot, bytes: u64) {
        let returned = self.ghost.recall(&id);
        self.pace.miss(returned, self.main);
        let entry = Entry { id, pages: pages_of(bytes), lives: u8::from(returned) };
        self.push(dataset, Lane::Unsorted, Side::Small, entry);
    }

    /// An object was here when the store was opened. Nothing is known about it but that it was worth keeping.
    pub fn restore(&mut self, id: ObjectId, dataset: DatasetSlot, bytes: u64) {
        self.push(dataset, Lane::Unsorted, Side::Main, Entry { id, pages: pages_of(bytes), lives: LIVES });
    }

    /// A victim could not go.
    pub fn take_back(&mut self, victim: &Victim) {
        self.restore(victim.id, victim.dataset, victim.bytes);
    }

    /// So many objects were read for the first time since they were last looked at.
    pub fn note_hits(&mut self, hits: u64) {
        self.pace.hits(hits, self.main);
    }

    /// Classes are others now: every object is sorted anew, when an eviction comes by.
    pub fn sort_again(&mut self) {
        for lanes in self.lanes.values_mut() {
            for pair in &mut lanes.sorted {
                lanes.unsorted.small.absorb(&mut pair.small);
                lanes.unsorted.main.absorb(&mut pair.main);
            }
        }
    }

    /// Entries in the order, including some of objects that are gone.
    pub fn len(&self) -> usize {
        self.lanes.values().flat_map(Lanes::pairs).map(|pair| pair.small.len() + pair.main.len()).sum()
    }

    /// Whether there is nothing to evict.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to evict to free `request.bytes`, or as much as a limited number of steps finds.
    pub fn plan(&mut self, request: &Request<'_>, view: &mut impl View) -> Plan {
        let mut planning = Planning::new(self, *request, view);
        planning.sort(SORTED);
        planning.ask_pinned_again();
        loop {
            for class in CLASSES.into_iter().filter(|class| *class <= request.upto) {
                // What is unsorted may be of a class that goes before the pinned.
                if class < Class::Pinned || !planning.has(Lane::Unsorted) {
                    planning.evict(class);
                }
            }
            if planning.is_done() || !planning.has(Lane::Unsorted) {
                break;
            }
            planning.sort(SORTED);
        }
        let exhausted = planning.freed < request.bytes && planning.steps < STEPS;
        Plan { victims: planning.victims, steps: planning.steps, exhausted }
    }

    fn push(&mut self, dataset: DatasetSlot, lane: Lane, side: Side, entry: Entry) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.push_at(dataset, lane, side, entry, sequence);
    }

    fn push_at(&mut self, dataset: DatasetSlot, lane: Lane, side: Side, entry: Entry, sequence: u64) {
        self.main += usize::from(side == Side::Main);
        self.lanes.entry(dataset).or_default().pair(lane).of(side).push(entry, sequence);
    }
}

#[cfg(test)]
mod tests;
