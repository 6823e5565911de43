//! Policies to compare on traces: the store's own, the usual ones, and the optimum that knows the future.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use forebay_catalog::ObjectId;

use super::traces::Trace;
use super::{Class, Eviction, Request, Standing, View};
use crate::store::DatasetSlot;

/// A cache of a certain capacity under one policy.
pub trait Policy {
    /// An object is asked for; whether it was there. If not, it is now. `seen`: the policy is told of a hit.
    fn access(&mut self, object: u32, bytes: u64, seen: bool) -> bool;
}

/// All policies by name, for a trace and a capacity in bytes.
pub fn all(trace: &Trace, capacity: u64) -> Vec<(&'static str, Box<dyn Policy>)> {
    vec![
        ("lru", Box::new(Recency::new(capacity, true))),
        ("fifo", Box::new(Recency::new(capacity, false))),
        ("clock", Box::new(Clock { capacity, ..Clock::default() })),
        ("sieve", Box::new(Sieve { capacity, ..Sieve::default() })),
        ("s3-fifo", Box::new(S3Fifo { capacity, ..S3Fifo::default() })),
        ("ours", Box::new(Ours::new(capacity))),
        ("belady", Box::new(Belady::new(trace, capacity))),
    ]
}

/// The policy with a name out of [`all`].
pub fn by_name(name: &str, trace: &Trace, capacity: u64) -> Option<Box<dyn Policy>> {
    all(trace, capacity).into_iter().find(|(known, _)| *known == name).map(|(_, policy)| policy)
}

/// Least recently used, or first in first out.
struct Recency {
    capacity: u64,
    used: u64,
    now: u64,
    renew: bool,
    objects: HashMap<u32, (u64, u64)>,
    order: BTreeMap<u64, u32>,
}

impl Recency {
    fn new(capacity: u64, renew: bool) -> Self {
        Self { capacity, used: 0, now: 0, renew, objects: HashMap::new(), order: BTreeMap::new() }
    }
}

impl Policy for Recency {
    fn access(&mut self, object: u32, bytes: u64, seen: bool) -> bool {
        self.now += 1;
        if let Some((at, _)) = self.objects.get_mut(&object) {
            if self.renew && seen {
                self.order.remove(at);
                *at = self.now;
                self.order.insert(self.now, object);
            }
            return true;
        }
        self.objects.insert(object, (self.now, bytes));
        self.order.insert(self.now, object);
        self.used += bytes;
        while self.used > self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.used -= self.objects.remove(&oldest).map_or(0, |(_, bytes)| bytes);
        }
        false
    }
}

/// First in, first out, with a second chance for what was read: what the store had before.
#[derive(Default)]
struct Clock {
    capacity: u64,
    used: u64,
    objects: HashMap<u32, (bool, u64)>,
    queue: VecDeque<u32>,
}

impl Policy for Clock {
    fn access(&mut self, object: u32, bytes: u64, seen: bool) -> bool {
        if let Some((read, _)) = self.objects.get_mut(&object) {
            *read |= seen;
            return true;
        }
        while self.used + bytes > self.capacity {
            let Some(oldest) = self.queue.pop_front() else { break };
            match self.objects.get_mut(&oldest) {
                Some((read @ true, _)) => {
                    *read = false;
                    self.queue.push_back(oldest);
                }
                _ => self.used -= self.objects.remove(&oldest).map_or(0, |(_, bytes)| bytes),
            }
        }
        self.objects.insert(object, (false, bytes));
        self.queue.push_back(object);
        self.used += bytes;
        false
    }
}

/// SIEVE (Zhang et al., NSDI 2024): a clock whose survivors stay in their places.
#[derive(Default)]
struct Sieve {
    capacity: u64,
    used: u64,
    now: u64,
    hand: u64,
    objects: HashMap<u32, (bool, u64)>,
    order: BTreeMap<u64, u32>,
}

impl Policy for Sieve {
    fn access(&mut self, object: u32, bytes: u64, seen: bool) -> bool {
        self.now += 1;
        if let Some((read, _)) = self.objects.get_mut(&object) {
            *read |= seen;
            return true;
        }
        while self.used + bytes > self.capacity {
            let under = self.order.range(self.hand..).next().or_else(|| self.order.iter().next());
            let Some((at, oldest)) = under.map(|(at, oldest)| (*at, *oldest)) else { break };
            if let Some((read @ true, _)) = self.objects.get_mut(&oldest) {
                *read = false;
            } else {
                self.order.remove(&at);
                self.used -= self.objects.remove(&oldest).map_or(0, |(_, bytes)| bytes);
            }
            self.hand = self.order.range(at + 1..).next().map_or(0, |(next, _)| *next);
        }
        self.objects.insert(object, (false, bytes));
        self.order.insert(self.now, object);
        self.used += bytes;
        false
    }
}

/// S3-FIFO (Yang et al., SOSP 2023) by bytes: small queue 10 %, two bits of frequency, ghost as long as main; from small to main when
/// it was read again, which on these traces is never worse than the paper's "twice".
#[derive(Default)]
struct S3Fifo {
    capacity: u64,
    used: u64,
    small_bytes: u64,
    objects: HashMap<u32, (u8, u64)>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: HashMap<u32, u64>,
    ghost_order: VecDeque<(u32, u64)>,
    evictions: u64,
}

impl S3Fifo {
    fn evict(&mut self) {
        if self.small_bytes * 10 > self.capacity || self.main.is_empty() {
            let Some(oldest) = self.small.pop_front() else { return };
            let Some((read, bytes)) = self.objects.get_mut(&oldest) else { return };
            self.small_bytes -= *bytes;
            if *read > 0 {
                *read = 0;
                self.main.push_back(oldest);
                return;
            }
            self.used -= *bytes;
            self.objects.remove(&oldest);
            self.evictions += 1;
            self.ghosts.insert(oldest, self.evictions);
            self.ghost_order.push_back((oldest, self.evictions));
            while self.ghost_order.len() > self.main.len().max(1) {
                let Some((ghost, at)) = self.ghost_order.pop_front() else { break };
                if self.ghosts.get(&ghost) == Some(&at) {
                    self.ghosts.remove(&ghost);
                }
            }
        } else if let Some(oldest) = self.main.pop_front()
            && let Some((read, bytes)) = self.objects.get_mut(&oldest)
        {
            if *read > 0 {
                *read -= 1;
                self.main.push_back(oldest);
            } else {
                self.used -= *bytes;
                self.objects.remove(&oldest);
            }
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, object: u32, bytes: u64, seen: bool) -> bool {
        if let Some((read, _)) = self.objects.get_mut(&object) {
            *read = (*read + u8::from(seen)).min(3);
            return true;
        }
        while self.used + bytes > self.capacity && self.used > 0 {
            self.evict();
        }
        if self.ghosts.remove(&object).is_some() {
            self.main.push_back(object);
        } else {
            self.small.push_back(object);
            self.small_bytes += bytes;
        }
        self.objects.insert(object, (0, bytes));
        self.used += bytes;
        false
    }
}

/// Evicts what is asked for again last (Belady): the optimum for objects of one size, and a good bound for others.
struct Belady {
    capacity: u64,
    used: u64,
    at: usize,
    /// For each access, when the object is asked for next.
    next: Vec<usize>,
    objects: HashMap<u32, (usize, u64)>,
    order: BTreeSet<(usize, u32)>,
}

impl Belady {
    fn new(trace: &Trace, capacity: u64) -> Self {
        let mut last = HashMap::new();
        let mut next: Vec<_> = trace
            .accesses
            .iter()
            .enumerate()
            .rev()
            .map(|(at, access)| last.insert(access.object, at).unwrap_or(usize::MAX))
            .collect();
        next.reverse();
        Self { capacity, used: 0, at: 0, next, objects: HashMap::new(), order: BTreeSet::new() }
    }
}

impl Policy for Belady {
    fn access(&mut self, object: u32, bytes: u64, _seen: bool) -> bool {
        let next = self.next.get(self.at).copied().unwrap_or(usize::MAX);
        self.at += 1;
        let before = self.objects.insert(object, (next, bytes));
        match before {
            Some((at, _)) => {
                self.order.remove(&(at, object));
            }
            None => self.used += bytes,
        }
        self.order.insert((next, object));
        while self.used > self.capacity {
            let Some((_, last)) = self.order.pop_last() else { break };
            self.used -= self.objects.remove(&last).map_or(0, |(_, bytes)| bytes);
        }
        before.is_some()
    }
}

/// The store's own order, as the store uses it.
struct Ours {
    capacity: u64,
    used: u64,
    hits: u64,
    order: Eviction,
    objects: Objects,
}

#[derive(Default)]
struct Objects(HashMap<ObjectId, (bool, u64)>);

const DATASET: DatasetSlot = DatasetSlot(0);

impl View for Objects {
    fn class(&mut self, id: &ObjectId) -> Option<(DatasetSlot, Class)> {
        self.0.contains_key(id).then_some((DATASET, Class::Owned))
    }

    fn standing(&mut self, id: &ObjectId) -> Option<Standing> {
        let (read, bytes) = self.0.get_mut(id)?;
        Some(Standing { dataset: DATASET, bytes: *bytes, in_use: false, read: std::mem::take(read) })
    }
}

impl Ours {
    fn new(capacity: u64) -> Self {
        Self { capacity, used: 0, hits: 0, order: Eviction::default(), objects: Objects::default() }
    }
}

impl Policy for Ours {
    fn access(&mut self, object: u32, bytes: u64, seen: bool) -> bool {
        let id = ObjectId::new("trace", &object.to_le_bytes(), "", 0);
        if let Some((read, _)) = self.objects.0.get_mut(&id) {
            self.hits += u64::from(seen && !*read);
            *read |= seen;
            return true;
        }
        self.order.note_hits(std::mem::take(&mut self.hits));
        let scope = |_| true;
        while self.used + bytes > self.capacity {
            let need = self.used + bytes - self.capacity;
            let request = Request { bytes: need, target: self.capacity, upto: Class::Pinned, scope: &scope };
            let plan = self.order.plan(&request, &mut self.objects);
            for victim in &plan.victims {
                self.objects.0.remove(&victim.id);
                self.used -= victim.bytes;
            }
            if plan.exhausted {
                break;
            }
        }
        self.order.insert(id, DATASET, bytes);
        self.objects.0.insert(id, (false, bytes));
        self.used += bytes;
        false
    }
}
