//! The order by examples: who goes first, who never goes, and what it costs to find out.

use std::collections::HashMap;

use super::*;

#[derive(Clone, Copy)]
struct Object {
    dataset: u32,
    class: Class,
    in_use: bool,
    read: bool,
}

#[derive(Default)]
struct World {
    objects: HashMap<ObjectId, Object>,
    order: Eviction,
    asked: usize,
}

const BYTES: u64 = 4096;

struct Look<'a>(&'a mut HashMap<ObjectId, Object>, &'a mut usize);

impl View for Look<'_> {
    fn class(&mut self, id: &ObjectId) -> Option<(DatasetSlot, Class)> {
        *self.1 += 1;
        self.0.get(id).map(|object| (DatasetSlot(object.dataset), object.class))
    }

    fn standing(&mut self, id: &ObjectId) -> Option<Standing> {
        *self.1 += 1;
        let object = self.0.get_mut(id)?;
        let read = std::mem::take(&mut object.read);
        Some(Standing { dataset: DatasetSlot(object.dataset), bytes: BYTES, in_use: object.in_use, read })
    }
}

fn id(n: u32) -> ObjectId {
    ObjectId::new("order", &n.to_le_bytes(), "e", 1)
}

impl World {
    fn add(&mut self, n: u32, dataset: u32, class: Class) {
        self.objects.insert(id(n), Object { dataset, class, in_use: false, read: false });
        self.order.insert(id(n), DatasetSlot(dataset), BYTES);
    }

    fn object(&mut self, n: u32) -> &mut Object {
        self.objects.get_mut(&id(n)).unwrap()
    }

    /// Evicts so many objects if it can, in as many plans as it takes; who went.
    fn evict(&mut self, count: u64, upto: Class, scope: &dyn Fn(DatasetSlot) -> bool) -> Vec<u32> {
        let mut gone = Vec::new();
        let all = self.objects.values().filter(|object| scope(DatasetSlot(object.dataset))).count() as u64;
        let target = all.saturating_sub(count) * BYTES;
        loop {
            let bytes = (count - gone.len() as u64) * BYTES;
            let request = Request { bytes, target, upto, scope };
            let plan = self.order.plan(&request, &mut Look(&mut self.objects, &mut self.asked));
            for victim in &plan.victims {
                assert!(!self.objects.remove(&victim.id).unwrap().in_use);
                gone.push((0..100_000).find(|n| id(*n) == victim.id).unwrap());
            }
            if gone.len() as u64 >= count || plan.exhausted {
                return gone;
            }
        }
    }
}

const ALL: &dyn Fn(DatasetSlot) -> bool = &|_| true;

#[test]
fn copies_go_before_what_is_owned_and_that_before_what_is_pinned() {
    let mut world = World::default();
    for n in 0..30 {
        world.add(n, n % 2, [Class::Pinned, Class::Owned, Class::Copy][n as usize % 3]);
    }
    assert!(world.evict(10, Class::Copy, ALL).iter().all(|n| n % 3 == 2));
    assert_eq!(world.evict(1, Class::Copy, ALL), [0; 0], "nothing but copies for a preload");
    assert!(world.evict(10, Class::Owned, ALL).iter().all(|n| n % 3 == 1));
    assert_eq!(world.evict(1, Class::Owned, ALL), [0; 0]);
    assert_eq!(world.evict(20, Class::Pinned, ALL).len(), 10);
    assert!(world.order.is_empty());
}

#[test]
fn what_is_in_use_stays_and_what_was_read_stays_longer() {
    let mut world = World::default();
    (0..10).for_each(|n| world.add(n, 0, Class::Owned));
    world.object(0).in_use = true;
    world.object(1).read = true;
    let gone = world.evict(8, Class::Pinned, ALL);
    assert!(!gone.contains(&0) && !gone.contains(&1), "{gone:?}");
    assert_eq!(world.evict(8, Class::Pinned, ALL), [1]);
    world.object(0).in_use = false;
    assert_eq!(world.evict(1, Class::Pinned, ALL), [0]);
}

#[test]
fn one_dataset_is_found_among_many_without_looking_at_the_others() {
    let mut world = World::default();
    for n in 0..20_000 {
        world.add(n, u32::from(n % 1000 == 7), Class::Owned);
    }
    let gone = world.evict(5, Class::Pinned, &|dataset| dataset == DatasetSlot(1));
    assert!(gone.len() == 5 && gone.iter().all(|n| n % 1000 == 7), "{gone:?}");
    assert!(world.asked < 100, "{}", world.asked);
}

#[test]
fn the_oldest_goes_first_whichever_dataset_it_is_of() {
    let mut world = World::default();
    (0..100).for_each(|n| world.add(n, n * 7 % 5, Class::Owned));
    // Main is filled first, so take all.
    let gone = world.evict(100, Class::Pinned, ALL);
    assert_eq!(gone, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_class_that_can_not_go_is_looked_at_once_and_no_more() {
    let mut world = World::default();
    (0..5000).for_each(|n| world.add(n, 0, Class::Pinned));
    (5000..10_000).for_each(|n| world.add(n, 0, Class::Owned));
    assert_eq!(world.evict(100, Class::Owned, ALL).len(), 100);
    let first = std::mem::take(&mut world.asked);
    assert!(first < 12_000, "{first}");
    assert_eq!(world.evict(1000, Class::Owned, ALL).len(), 1000);
    assert!(world.asked < 9000, "{}", world.asked);
}

#[test]
fn who_is_pinned_no_longer_goes_as_others_do() {
    let mut world = World::default();
    (0..100).for_each(|n| world.add(n, 0, Class::Pinned));
    assert_eq!(world.evict(1, Class::Owned, ALL), [0; 0]);
    world.object(3).class = Class::Owned;
    let gone: Vec<_> = (0..10).flat_map(|_| world.evict(1, Class::Owned, ALL)).collect();
    assert_eq!(gone, [3]);
    // Other members: everything is another class at once.
    (0..100).filter(|n| *n != 3).for_each(|n| world.object(n).class = Class::Copy);
    world.order.sort_again();
    assert_eq!(world.evict(99, Class::Copy, ALL).len(), 99);
}

#[test]
fn an_object_that_moved_to_another_dataset_is_found_there() {
    let mut world = World::default();
    (0..10).for_each(|n| world.add(n, 0, Class::Owned));
    // Sorted already, as the first dataset's.
    let first = world.evict(1, Class::Owned, ALL);
    (0..10).filter(|n| *n < 5 && !first.contains(n)).for_each(|n| world.object(n).dataset = 1);
    let of = |wanted: u32| move |dataset: DatasetSlot| dataset == DatasetSlot(wanted);
    let gone = world.evict(10, Class::Owned, &of(0));
    assert!(gone.len() >= 4 && gone.iter().all(|n| *n >= 5), "{gone:?}");
    let gone = world.evict(10, Class::Owned, &of(1));
    assert!(gone.len() >= 4 && gone.iter().all(|n| *n < 5), "{gone:?}");
    assert!(world.order.is_empty());
}

struct Everything;
impl View for Everything {
    fn class(&mut self, id: &ObjectId) -> Option<(DatasetSlot, Class)> {
        Some((DatasetSlot(u32::from(id.as_bytes()[0]) % 10), Class::Owned))
    }
    fn standing(&mut self, id: &ObjectId) -> Option<Standing> {
        let dataset = DatasetSlot(u32::from(id.as_bytes()[0]) % 10);
        Some(Standing { dataset, bytes: BYTES, in_use: false, read: false })
    }
}

#[test]
fn ten_million_objects_are_ordered_quickly_in_little_memory() {
    // A tenth of that here; it grows in proportion.
    let mut order = Eviction::default();
    let bytes = |n: u32| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_le_bytes());
        ObjectId::from_bytes(id)
    };
    (0..1_000_000).for_each(|n| order.restore(bytes(n), DatasetSlot(n % 10), BYTES));
    let mut victims = 0;
    let mut steps = 0;
    while victims < 100_000 {
        let request = Request { bytes: 100 * BYTES, target: 900_000 * BYTES, upto: Class::Pinned, scope: ALL };
        let plan = order.plan(&request, &mut Everything);
        victims += plan.victims.len();
        steps += plan.steps;
        assert!(plan.steps <= STEPS + 1);
    }
    assert!(steps < 20 * victims, "{steps} steps for {victims} victims");
    assert_eq!(order.len(), 1_000_000 - victims);
}
