use std::collections::{BTreeSet, HashMap};

use forebay_protocol::config::{Member, MemberState};
use proptest::prelude::*;

use super::*;

fn member(n: u8, weight: u32) -> Member {
    Member { id: Some(format!("node-{n}")), weight, ..Member::at(SocketAddr::from(([127, 0, 0, n], 7070))) }
}

fn in_zone(n: u8, zone: &str) -> Member {
    Member { zone: Some(zone.to_owned()), ..member(n, 1) }
}

fn leaving(n: u8) -> Member {
    Member { state: MemberState::Leaving, ..member(n, 1) }
}

fn id(n: u32) -> ObjectId {
    ObjectId::new("test", &n.to_le_bytes(), "e", 1)
}

fn auto(replicas: u32) -> PlacementConfig {
    PlacementConfig { mode: PlacementMode::Auto, replicas }
}

const EVERYWHERE: PlacementConfig = PlacementConfig { mode: PlacementMode::Everywhere, replicas: 1 };

fn seen_by(members: &[Member], me: &str, config: PlacementConfig) -> Placement {
    Placement::new(Arc::new(Members::new(members, me, &[])), config)
}

/// The members that keep a stripe of an object, each as it sees it itself.
fn keepers(members: &[Member], config: PlacementConfig, object: u32) -> Vec<String> {
    let ids = members.iter().map(Member::placement_id);
    ids.filter(|me| seen_by(members, me, config).keeps(&id(object), StripeIndex(0))).collect()
}

fn address(n: u8) -> SocketAddr {
    member(n, 1).address
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn everything_has_its_owners_and_one_bringer_whoever_computes_them(count in 2_u8..9, replicas in 1_u32..4, everywhere: bool, objects in proptest::collection::vec(any::<u32>(), 10)) {
        let members: Vec<_> = (1..=count).map(|n| member(n, u32::from(n % 3))).collect();
        let mut reversed = members.clone();
        reversed.reverse();
        let config = if everywhere { EVERYWHERE } else { auto(replicas) };
        let able = members.iter().filter(|member| member.weight > 0).count();
        for object in objects {
            let keepers = keepers(&members, config, object);
            prop_assert_eq!(keepers.len(), if everywhere { able } else { able.min(replicas as usize) });
            let turned = super::tests::keepers(&reversed, config, object);
            prop_assert_eq!(keepers.iter().collect::<BTreeSet<_>>(), turned.iter().collect::<BTreeSet<_>>());
            let mut bringers = BTreeSet::new();
            for me in members.iter().map(Member::placement_id) {
                let placement = seen_by(&members, &me, config);
                prop_assert_eq!(placement.copies(), keepers.len());
                let chunk = ChunkIndex(3);
                bringers.insert(placement.bringer(&id(object), chunk).and_then(|bringer| placement.members().id(bringer).map(str::to_owned)));
                // Nobody asks itself, nor anyone when it is its own to bring, nor anyone when asked by a peer.
                let route = placement.route(&id(object), chunk, Purpose::Reader);
                prop_assert_eq!(route.is_empty(), placement.is_bringer(&id(object), chunk));
                let mine = members.iter().find(|member| member.placement_id() == me).unwrap().address;
                prop_assert!(route.iter().all(|step| step.address != mine));
                prop_assert!(placement.route(&id(object), chunk, Purpose::Owner).is_empty());
                prop_assert!(placement.holders(&id(object), chunk).iter().all(|holder| *holder != mine));
                // Who relays never asks for a relay.
                let relayed = placement.route(&id(object), chunk, Purpose::Relay);
                prop_assert!(relayed.iter().all(|step| step.reach == Reach::Source));
            }
            prop_assert_eq!(bringers.len(), 1);
        }
    }

    #[test]
    fn a_member_that_comes_takes_only_what_becomes_its_own_and_knows_who_had_it(count in 1_u8..9, seed: u32) {
        let before: Vec<_> = (1..=count).map(|n| member(n, 1)).collect();
        let mut after = before.clone();
        let newcomer = member(count + 1, 1);
        after.push(newcomer.clone());
        let mut moved = 0;
        for object in (0..300).map(|object| object ^ seed) {
            let (old, new) = (keepers(&before, auto(1), object), keepers(&after, auto(1), object));
            if old != new {
                prop_assert_eq!(&new, &[newcomer.placement_id()]);
                moved += 1;
                let members = Arc::new(Members::new(&after, &newcomer.placement_id(), &[]));
                let asked = Placement::after_start(members, auto(1)).holders(&id(object), ChunkIndex(0));
                let had_it = before.iter().find(|member| member.placement_id() == old[0]).unwrap().address;
                prop_assert_eq!(asked.first(), Some(&had_it));
            }
        }
        let fair = 300 / (u32::from(count) + 1);
        prop_assert!(moved < fair * 2 + 20, "{} of 300 moved", moved);
    }

    #[test]
    fn a_member_that_leaves_hands_its_share_to_those_who_know_that_it_had_it(count in 2_u8..9, seed: u32) {
        let before: Vec<_> = (1..=count).map(|n| member(n, 1)).collect();
        let mut after = before.clone();
        after[0] = leaving(1);
        for object in (0..100).map(|object| object ^ seed) {
            let (old, new) = (keepers(&before, auto(1), object), keepers(&after, auto(1), object));
            prop_assert_eq!(new.len(), 1);
            let asked = seen_by(&after, &new[0], auto(1)).holders(&id(object), ChunkIndex(0));
            if old == new {
                prop_assert_eq!(asked, []);
            } else {
                prop_assert_eq!(&old[0], "node-1");
                prop_assert_eq!(asked, [address(1)]);
                let heirs = seen_by(&after, "node-1", auto(1));
                let heir = heirs.heirs(&id(object), ChunkIndex(0))[0];
                prop_assert_eq!(heirs.members().id(heir), Some(new[0].as_str()));
            }
        }
    }
}

#[test]
fn shares_follow_the_weights() {
    let members = [member(1, 1), member(2, 2), member(3, 0), member(4, 5)];
    let mut counts: HashMap<String, u32> = HashMap::new();
    for object in 0..8000 {
        *counts.entry(keepers(&members, auto(1), object).pop().unwrap()).or_default() += 1;
    }
    let share = |n: u8| counts.get(&format!("node-{n}")).copied().unwrap_or(0);
    assert!((900..1100).contains(&share(1)) && (1850..2150).contains(&share(2)) && share(3) == 0, "{counts:?}");
    let mine = Members::new(&members, "node-4", &[]).my_share();
    assert!((mine - 0.625).abs() < 1e-9);
}

#[test]
fn a_node_alone_or_outside_reads_for_itself() {
    let alone = seen_by(&[], "x", auto(1));
    assert!(alone.keeps(&id(1), StripeIndex(0)) && alone.members().includes_me());
    assert_eq!(alone.route(&id(1), ChunkIndex(0), Purpose::Reader), []);
    let outside = seen_by(&[member(1, 1), member(2, 1)], "x", auto(1));
    assert!(!outside.keeps(&id(1), StripeIndex(0)) && !outside.members().includes_me());
    assert_eq!(outside.route(&id(1), ChunkIndex(0), Purpose::Reader).len(), 2);
    let by_address = Members::new(&[member(1, 1)], "x", &[address(1)]);
    assert!(by_address.is_alone() && by_address.includes_me());
    let all_leave = seen_by(&[leaving(1), leaving(2)], "node-1", auto(1));
    assert!(all_leave.keeps(&id(1), StripeIndex(0)) && all_leave.heirs(&id(1), ChunkIndex(0)).is_empty());
}

#[test]
fn copies_go_to_different_zones_and_a_reader_asks_its_own_first() {
    let members = [in_zone(1, "a"), in_zone(2, "a"), in_zone(3, "b"), in_zone(4, "b"), in_zone(5, "c")];
    for object in 0..200 {
        let kept = keepers(&members, auto(2), object);
        let zones: BTreeSet<_> =
            members.iter().filter(|m| kept.contains(&m.placement_id())).map(|m| m.zone.clone()).collect();
        assert_eq!((kept.len(), zones.len()), (2, 2), "{kept:?}");
        for reader in &members {
            let placement = seen_by(&members, &reader.placement_id(), auto(2));
            let route = placement.route(&id(object), ChunkIndex(0), Purpose::Reader);
            if kept.contains(&reader.placement_id()) {
                continue;
            }
            let zone_of = |step: &Step| &members.iter().find(|m| m.address == step.address).unwrap().zone;
            assert_eq!(zone_of(&route[0]) == &reader.zone, zones.contains(&reader.zone));
            let first = placement.bringer(&id(object), ChunkIndex(0)).unwrap();
            for step in &route[..2] {
                let is_first = placement.members().address(first) == Some(step.address);
                assert_eq!(step.reach, if is_first { Reach::Source } else { Reach::Relay });
            }
        }
    }
    // Five copies in three zones: the zones first, then whoever comes next.
    assert_eq!(keepers(&members, auto(5), 1).len(), 5);
}

#[test]
fn nobody_is_asked_for_what_it_may_hold_while_nothing_happens() {
    let members: Vec<_> = (1..=4).map(|n| member(n, 1)).collect();
    for object in 0..50 {
        for n in 1..=4_u8 {
            let placement = seen_by(&members, &format!("node-{n}"), auto(1));
            if placement.is_bringer(&id(object), ChunkIndex(0)) {
                assert_eq!(placement.holders(&id(object), ChunkIndex(0)), []);
            }
            let same = placement.changed(Arc::clone(placement.members()), auto(1));
            assert!(same.former.is_empty());
        }
    }
}

#[test]
fn with_everywhere_each_brings_its_part_and_begins_with_another_one() {
    let members: Vec<_> = (1..=4).map(|n| member(n, 1)).collect();
    let mut brought: HashMap<_, u32> = HashMap::new();
    let placement = seen_by(&members, "node-2", EVERYWHERE);
    for chunk in 0..400 {
        *brought.entry(placement.bringer(&id(7), ChunkIndex(chunk)).unwrap()).or_default() += 1;
    }
    assert!(brought.len() == 4 && brought.values().all(|count| *count == 100), "{brought:?}");
    let first_asked: BTreeSet<_> =
        (1..=4).map(|n| seen_by(&members, &format!("node-{n}"), EVERYWHERE).bringers_behind_me()[0]).collect();
    assert_eq!(first_asked.len(), 4);
    // When the bringer can't be reached, all agree on the next.
    let next: BTreeSet<_> = [1, 2, 3, 4]
        .into_iter()
        .filter_map(|n| {
            seen_by(&members, &format!("node-{n}"), EVERYWHERE)
                .route(&id(7), ChunkIndex(0), Purpose::Reader)
                .get(1)
                .copied()
        })
        .map(|step| step.address)
        .collect();
    assert_eq!(next.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_before_a_change_is_forgotten_after_an_hour() {
    let before = [member(1, 1), member(2, 1), member(3, 1)];
    // Node 3 comes to own nothing; whoever owns its part now remembers that it did.
    let after = [member(1, 1), member(2, 1), member(3, 0)];
    let changed = seen_by(&before, "node-1", auto(1)).changed(Arc::new(Members::new(&after, "node-1", &[])), auto(1));
    let moved = (0..1000)
        .find(|object| {
            keepers(&before, auto(1), *object) == ["node-3"] && keepers(&after, auto(1), *object) == ["node-1"]
        })
        .unwrap();
    assert_eq!(changed.holders(&id(moved), ChunkIndex(0)), [address(3)]);
    assert_eq!(changed.all_holders(&id(moved), ChunkIndex(0)), [address(3)]);
    assert!(!changed.kept_before(&id(moved), 1));
    tokio::time::advance(REMEMBERED).await;
    assert_eq!(changed.holders(&id(moved), ChunkIndex(0)), []);
}
