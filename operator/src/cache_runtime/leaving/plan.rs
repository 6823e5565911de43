//! Which cache nodes are to leave, which of their pods may end now, and how many pods the StatefulSet has meanwhile. Pure, and made anew from what
//! is there each time, so that an operator that restarts goes on where the last one was.
//!
//! A StatefulSet that shrinks ends its last pods, whichever nodes they are on. So a pod whose node is to be left is evicted when it is done, and the
//! set shrinks only as far as it ends nothing that others still need: pods that are done, and pods whose place is certainly taken again at once by
//! one that has none, with the same storage.

use std::collections::BTreeSet;

/// A pod of the StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its number in the StatefulSet.
    pub ordinal: usize,
    /// Where it is.
    pub place: Place,
}

/// Where a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On no node yet, or ending.
    Nowhere,
    /// On no node, and the scheduler knows none.
    Unschedulable,
    /// On a node.
    On {
        /// The node matches the runtime's selector and is not asked to be left.
        stays: bool,
        /// Should it leave: it has handed over what it holds, has nothing, or its time is up.
        done: bool,
    },
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ordinals of the pods whose cache nodes are to leave, done or not.
    pub leaving: BTreeSet<usize>,
    /// Those of them whose pods are to be evicted now, as the StatefulSet keeps their ordinals.
    pub evict: BTreeSet<usize>,
    /// Pods of the StatefulSet now.
    pub replicas: usize,
}

/// Plans for `desired` cache nodes on `matching` nodes of the cluster.
pub fn plan(desired: usize, matching: usize, pods: &[PodView]) -> Plan {
    let count = pods.iter().map(|pod| pod.ordinal + 1).max().unwrap_or_default();
    let place = |ordinal: usize| {
        // One that is not there is about to be made again.
        pods.iter().find(|pod| pod.ordinal == ordinal).map_or(Place::Nowhere, |pod| pod.place)
    };
    let all = || (0..count).map(|ordinal| (ordinal, place(ordinal)));
    let of = |wanted: fn(Place) -> bool| all().filter(move |(_, place)| wanted(*place)).map(|(ordinal, _)| ordinal);
    let staying: BTreeSet<usize> = of(|place| matches!(place, Place::On { stays: true, .. })).collect();
    let nowhere: BTreeSet<usize> = of(|place| place == Place::Nowhere).collect();
    let unschedulable: BTreeSet<usize> = of(|place| place == Place::Unschedulable).collect();
    // Nodes that a pod without one will get.
    let free = if unschedulable.is_empty() { matching.saturating_sub(staying.len()) } else { 0 };

    // Too many: the last ones leave, those that are about to get a node included.
    let expected = staying.len() + nowhere.len().min(free);
    let surplus = expected.saturating_sub(desired);
    let coming = if free > 0 { nowhere.clone() } else { BTreeSet::new() };
    let candidates = &staying | &coming;
    let last: BTreeSet<usize> = candidates.into_iter().rev().take(surplus).collect();
    let mut leaving: BTreeSet<usize> = of(|place| matches!(place, Place::On { stays: false, .. })).collect();
    leaving.extend(last.intersection(&staying));
    let stayers: BTreeSet<usize> = staying.difference(&leaving).copied().collect();

    // Nobody is left to hand over to: the content stays on the disks for whoever comes back.
    let alone = stayers.is_empty() && coming.is_subset(&last);
    let done = |ordinal: usize| alone || matches!(place(ordinal), Place::On { done: true, .. });
    let may_end = |replicas: usize| {
        let ends = |set: &BTreeSet<usize>| set.iter().filter(|ordinal| **ordinal >= replicas).count();
        let freed = leaving.iter().filter(|ordinal| **ordinal >= replicas && staying.contains(ordinal)).count();
        let movers = nowhere.iter().chain(&unschedulable).chain(leaving.iter().filter(|ordinal| done(**ordinal)));
        let movers = movers.filter(|ordinal| **ordinal < replicas).count();
        let certain = ends(&stayers) == 0 || free == 0 && freed == 0 && movers >= ends(&stayers);
        certain && leaving.iter().all(|ordinal| *ordinal < replicas || done(*ordinal))
    };
    let replicas = (desired..count).find(|replicas| may_end(*replicas)).unwrap_or_else(|| desired.max(count));
    let evict = leaving.iter().copied().filter(|ordinal| *ordinal < replicas && done(*ordinal));
    // One of the last ones whose ordinal stays for now would come back to its node.
    let evict = evict.filter(|ordinal| !staying.contains(ordinal)).collect();
    if alone {
        leaving.retain(|ordinal| !staying.contains(ordinal));
    }
    Plan { leaving, evict, replicas }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAYS: Place = Place::On { stays: true, done: false };
    const STAYS_DONE: Place = Place::On { stays: true, done: true };
    const GOES: Place = Place::On { stays: false, done: false };
    const GOES_DONE: Place = Place::On { stays: false, done: true };

    fn check(desired: usize, matching: usize, places: &[Place], leaving: &[usize], evict: &[usize], replicas: usize) {
        let pods: Vec<_> =
            places.iter().enumerate().map(|(ordinal, place)| PodView { ordinal, place: *place }).collect();
        let expected =
            Plan { leaving: leaving.iter().copied().collect(), evict: evict.iter().copied().collect(), replicas };
        assert_eq!(plan(desired, matching, &pods), expected, "{desired} of {matching}: {places:?}");
    }

    #[test]
    fn nothing_happens_where_nothing_is_to_leave() {
        check(0, 0, &[], &[], &[], 0);
        check(3, 3, &[], &[], &[], 3);
        check(2, 2, &[STAYS, STAYS], &[], &[], 2);
        check(3, 3, &[STAYS, Place::Nowhere, STAYS], &[], &[], 3);
        check(4, 2, &[STAYS, STAYS, Place::Unschedulable, Place::Unschedulable], &[], &[], 4);
        // It grows at once.
        check(5, 5, &[STAYS, STAYS], &[], &[], 5);
    }

    #[test]
    fn the_last_ones_leave_first_and_the_set_shrinks_when_they_are_done() {
        check(1, 3, &[STAYS, STAYS, STAYS], &[1, 2], &[], 3);
        check(1, 3, &[STAYS, STAYS, STAYS_DONE], &[1, 2], &[], 2);
        check(1, 3, &[STAYS, STAYS_DONE, STAYS], &[1, 2], &[], 3);
        check(1, 3, &[STAYS, STAYS_DONE, STAYS_DONE], &[1, 2], &[], 1);
        // More again: they stay.
        check(3, 3, &[STAYS, STAYS_DONE, STAYS_DONE], &[], &[], 3);
    }

    #[test]
    fn pods_that_never_got_a_node_end_at_once() {
        check(2, 2, &[STAYS, STAYS, Place::Unschedulable], &[], &[], 2);
        check(2, 5, &[STAYS, STAYS, Place::Nowhere, Place::Nowhere], &[], &[], 2);
    }

    #[test]
    fn a_pod_that_is_replaced_meanwhile_does_not_change_who_leaves() {
        // Pod 1 is being replaced on its node while pod 2 hands over.
        check(2, 3, &[STAYS, Place::Nowhere, STAYS], &[2], &[], 3);
        check(2, 3, &[STAYS, Place::Nowhere, STAYS_DONE], &[2], &[], 2);
        check(1, 2, &[Place::Nowhere, STAYS], &[1], &[], 2);
    }

    #[test]
    fn a_node_that_is_to_be_left_is_drained_and_its_pod_takes_the_place_of_the_last() {
        // Pod 0's node does not match any more; pods 1 and 2 have the only two that do.
        check(2, 2, &[GOES, STAYS, STAYS], &[0], &[], 3);
        // Pod 2 ends and pod 0 comes to its node and storage.
        check(2, 2, &[GOES_DONE, STAYS, STAYS], &[0], &[0], 2);
        check(2, 2, &[Place::Nowhere, STAYS, STAYS], &[], &[], 2);
        check(2, 2, &[Place::Unschedulable, STAYS], &[], &[], 2);
        // The last one's node: it just ends.
        check(2, 2, &[STAYS, STAYS, GOES], &[2], &[], 3);
        check(2, 2, &[STAYS, STAYS, GOES_DONE], &[2], &[], 2);
    }

    #[test]
    fn the_set_does_not_shrink_while_another_node_may_be_taken_instead() {
        // Two are wanted, pod 0's node is to be left, and a third node is free: pod 0 may go there.
        check(2, 3, &[GOES_DONE, STAYS, STAYS], &[0], &[0], 3);
        check(2, 3, &[Place::Nowhere, STAYS, STAYS], &[2], &[], 3);
        // It has: then the last one hands over in peace.
        check(2, 3, &[STAYS, STAYS, STAYS], &[2], &[], 3);
    }

    #[test]
    fn a_fixed_number_moves_to_a_free_node() {
        check(2, 2, &[GOES, STAYS], &[0], &[], 2);
        check(2, 2, &[GOES_DONE, STAYS], &[0], &[0], 2);
        check(2, 2, &[Place::Nowhere, STAYS], &[], &[], 2);
    }

    #[test]
    fn where_nobody_would_be_left_nothing_is_handed_over() {
        check(0, 2, &[STAYS, STAYS], &[], &[], 0);
        check(0, 0, &[GOES, GOES], &[0, 1], &[], 0);
        check(2, 2, &[GOES, GOES], &[0, 1], &[0, 1], 2);
        // The one that comes next takes over from the other.
        check(2, 2, &[Place::Nowhere, GOES], &[1], &[], 2);
    }

    #[test]
    fn more_pods_than_nodes_shrink_step_by_step() {
        // Pod 0 has no node. The set must not end both others at once: pod 0 could take the one or the other's node.
        check(1, 2, &[Place::Unschedulable, STAYS, STAYS], &[2], &[], 3);
        check(1, 2, &[Place::Unschedulable, STAYS, STAYS_DONE], &[2], &[], 2);
    }

    /// A cluster: which node each pod is on, what each node's storage holds that nobody else has, and who has handed over.
    struct Cluster {
        nodes: Vec<bool>,
        pods: Vec<Option<usize>>,
        drained: BTreeSet<usize>,
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound.max(1)
        }
    }

    impl Cluster {
        fn free(&self) -> Vec<usize> {
            (0..self.nodes.len()).filter(|node| self.nodes[*node] && !self.pods.contains(&Some(*node))).collect()
        }

        fn views(&self) -> Vec<PodView> {
            let full = self.free().is_empty();
            let place = |node: &Option<usize>| match node {
                Some(node) => Place::On { stays: self.nodes[*node], done: self.drained.contains(node) },
                None if full => Place::Unschedulable,
                None => Place::Nowhere,
            };
            let view = |(ordinal, node)| PodView { ordinal, place: place(node) };
            self.pods.iter().enumerate().map(view).collect()
        }

        /// The scheduler puts a random pod without a node on a random free one.
        fn schedule(&mut self, random: &mut Random) {
            let free = self.free();
            let waiting: Vec<usize> = (0..self.pods.len()).filter(|pod| self.pods[*pod].is_none()).collect();
            if !free.is_empty() && !waiting.is_empty() {
                let (pod, node) = (waiting[random.below(waiting.len())], free[random.below(free.len())]);
                self.pods[pod] = Some(node);
                self.drained.remove(&node);
            }
        }
    }

    #[test]
    fn whatever_happens_a_storage_goes_only_when_it_was_handed_over_and_all_settles() {
        for seed in 0..3000 {
            let mut random = Random(seed);
            let size = 2 + random.below(5);
            let mut cluster = Cluster { nodes: vec![true; size], pods: vec![], drained: BTreeSet::new() };
            let mut fixed = (random.below(2) == 0).then(|| 1 + random.below(size + 1));
            for step in 0..200 {
                // Things change for a while, then they must settle.
                if step < 60 && random.below(10) == 0 {
                    let node = random.below(size);
                    cluster.nodes[node] = !cluster.nodes[node];
                    // Somebody always stays, and is there already.
                    let stayer = cluster.pods.iter().flatten().any(|node| cluster.nodes[*node]);
                    if !stayer && !cluster.pods.is_empty() {
                        cluster.nodes[node] = !cluster.nodes[node];
                    }
                }
                if step < 60 && random.below(20) == 0 {
                    fixed = (random.below(2) == 0).then(|| 1 + random.below(size + 1));
                }
                let matching = cluster.nodes.iter().filter(|matches| **matches).count();
                let desired = fixed.unwrap_or(matching);
                let plan = plan(desired, matching, &cluster.views());

                let leaving: BTreeSet<usize> =
                    plan.leaving.iter().filter_map(|pod| cluster.pods.get(*pod).copied().flatten()).collect();
                // Who stays again owns and holds things that it has not handed over.
                cluster.drained.retain(|node| leaving.contains(node));
                let before: BTreeSet<usize> = cluster.pods.iter().flatten().copied().collect();
                let gone: Vec<usize> = before.difference(&cluster.drained).copied().collect();
                for pod in &plan.evict {
                    cluster.pods[*pod] = None;
                }
                cluster.pods.resize(plan.replicas, None);
                if gone.iter().any(|node| !cluster.pods.contains(&Some(*node))) {
                    // Whose storage lost its pod gets one at once: nothing else is free.
                    while cluster.pods.contains(&None) && !cluster.free().is_empty() {
                        cluster.schedule(&mut random);
                    }
                }
                for node in gone {
                    assert!(cluster.pods.contains(&Some(node)), "seed {seed}, step {step}: {node} was lost: {plan:?}");
                }
                if random.below(2) == 0 {
                    cluster.schedule(&mut random);
                }
                let leaving: Vec<usize> = leaving.into_iter().collect();
                if !leaving.is_empty() && random.below(3) == 0 {
                    cluster.drained.insert(leaving[random.below(leaving.len())]);
                }
                if step == 199 {
                    let placed = cluster.pods.iter().flatten().count();
                    assert!(plan.leaving.is_empty() && plan.evict.is_empty(), "seed {seed}: {plan:?}");
                    assert_eq!((placed, cluster.pods.len()), (desired.min(matching), desired), "seed {seed}");
                }
            }
        }
    }
}
