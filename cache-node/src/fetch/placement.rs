//! Who owns what: weighted rendezvous hashing over the members of the config. Every node computes the same ranking from the same members,
//! and a member that comes or goes moves only its own share.

use std::net::SocketAddr;

use forebay_catalog::ObjectId;
use forebay_protocol::config::Member;

use crate::units::StripeIndex;

/// Position of a member in [`Members`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberIndex(usize);

/// All members, and which of them this node is.
#[derive(Clone, Debug, PartialEq)]
pub struct Members {
    members: Vec<(String, Member)>,
    me: Option<MemberIndex>,
}

/// Where to get something, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Ask this member.
    Peer(MemberIndex),
    /// Read the source; always the last.
    Source,
}

impl Members {
    /// The members of a config. This node is the one with `node_id`, or else the one at one of `addresses`.
    pub fn new(members: &[Member], node_id: &str, addresses: &[SocketAddr]) -> Self {
        let by_id = members.iter().position(|member| member.id.as_deref() == Some(node_id));
        let me = by_id.or_else(|| members.iter().position(|member| addresses.contains(&member.address)));
        let members = members.iter().map(|member| (member.placement_id(), member.clone())).collect();
        Self { members, me: me.map(MemberIndex) }
    }

    /// Whether this node is alone: it does everything itself.
    pub fn is_alone(&self) -> bool {
        self.others().next().is_none()
    }

    /// Whether this node is one of the members, or needs not be.
    pub fn includes_me(&self) -> bool {
        self.me.is_some() || self.members.is_empty()
    }

    /// Where a member's node API answers.
    pub fn address(&self, member: MemberIndex) -> Option<SocketAddr> {
        self.members.get(member.0).map(|(_, member)| member.address)
    }

    /// Everyone but this node.
    pub fn others(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        (0..self.members.len()).map(MemberIndex).filter(|member| Some(*member) != self.me)
    }

    /// This node's part of all weights.
    pub fn my_share(&self) -> f64 {
        let total: u64 = self.members.iter().map(|(_, member)| u64::from(member.weight)).sum();
        let mine = self.me.and_then(|me| self.members.get(me.0)).map_or(0, |(_, member)| member.weight);
        if total == 0 { 1.0 } else { f64::from(mine) / total as f64 }
    }

    /// Whether this node owns a stripe.
    pub fn owns(&self, id: &ObjectId, stripe: StripeIndex) -> bool {
        if self.is_alone() {
            return true;
        }
        let key = stripe_key(id, stripe);
        let best = self.scores(&key).max_by(|a, b| a.0.total_cmp(&b.0));
        // Without any owner everyone looks after itself.
        best.is_none_or(|(_, member)| Some(member) == self.me)
    }

    /// Where to get a stripe: the members ranked before this node, then the source.
    pub fn route(&self, id: &ObjectId, stripe: StripeIndex) -> Vec<Hop> {
        if self.is_alone() {
            return vec![Hop::Source];
        }
        let ranked = self.ranking(&stripe_key(id, stripe)).into_iter();
        let before_me = ranked.take_while(|member| Some(*member) != self.me).map(Hop::Peer);
        before_me.chain([Hop::Source]).collect()
    }

    /// The members that are to make a dataset's catalog before this node does.
    pub fn before_me_for_catalog(&self, dataset_uid: &str) -> Vec<MemberIndex> {
        let ranked = self.ranking(dataset_uid.as_bytes()).into_iter();
        ranked.take_while(|member| Some(*member) != self.me).collect()
    }

    /// All members that own anything, the first for `key` first.
    fn ranking(&self, key: &[u8]) -> Vec<MemberIndex> {
        let mut scores: Vec<_> = self.scores(key).collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores.into_iter().map(|(_, member)| member).collect()
    }

    fn scores<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (f64, MemberIndex)> + 'a {
        self.members.iter().enumerate().filter(|(_, (_, member))| member.weight > 0).map(
            move |(index, (id, member))| {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&(id.len() as u64).to_le_bytes());
                hasher.update(id.as_bytes());
                hasher.update(key);
                let mut bits = [0; 8];
                hasher.finalize_xof().fill(&mut bits);
                // Uniform in the open interval (0, 1), with the 53 bits that a double holds.
                let uniform = ((u64::from_le_bytes(bits) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
                (-f64::from(member.weight) / uniform.ln(), MemberIndex(index))
            },
        )
    }
}

fn stripe_key(id: &ObjectId, stripe: StripeIndex) -> [u8; 20] {
    let mut key = [0; 20];
    let (front, back) = key.split_at_mut(16);
    front.copy_from_slice(id.as_bytes());
    back.copy_from_slice(&stripe.0.to_le_bytes());
    key
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn member(n: u8, weight: u32) -> Member {
        Member { id: Some(format!("node-{n}")), weight, ..Member::at(SocketAddr::from(([127, 0, 0, n], 7070))) }
    }

    fn id(n: u32) -> ObjectId {
        ObjectId::new("test", &n.to_le_bytes(), "e", 1)
    }

    fn owner(members: &[Member], object: u32) -> Option<String> {
        members
            .iter()
            .map(Member::placement_id)
            .find(|id_of_member| Members::new(members, id_of_member, &[]).owns(&id(object), StripeIndex(0)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn everything_has_one_owner_whoever_computes_it_and_the_order_of_members_is_nothing(count in 2_u8..9, objects in proptest::collection::vec(any::<u32>(), 20)) {
            let members: Vec<_> = (1..=count).map(|n| member(n, u32::from(n % 3))).collect();
            let mut reversed = members.clone();
            reversed.reverse();
            for object in objects {
                let owners = members.iter().filter(|m| Members::new(&members, &m.placement_id(), &[]).owns(&id(object), StripeIndex(3))).count();
                prop_assert_eq!(owners, 1);
                prop_assert_eq!(owner(&members, object), owner(&reversed, object));
                for m in &members {
                    let members = Members::new(&members, &m.placement_id(), &[]);
                    let route = members.route(&id(object), StripeIndex(3));
                    prop_assert_eq!(route.last(), Some(&Hop::Source));
                    prop_assert_eq!(route.len() == 1, members.owns(&id(object), StripeIndex(3)));
                }
            }
        }

        #[test]
        fn a_new_member_takes_only_what_becomes_its_own(count in 1_u8..9, seed: u32) {
            let before: Vec<_> = (1..=count).map(|n| member(n, 1)).collect();
            let mut after = before.clone();
            after.push(member(count + 1, 1));
            let newcomer = member(count + 1, 1).placement_id();
            let mut moved = 0;
            for object in 0..300 {
                let object = object ^ seed;
                let (old, new) = (owner(&before, object), owner(&after, object));
                if old != new {
                    prop_assert_eq!(new, Some(newcomer.clone()));
                    moved += 1;
                }
            }
            let fair = 300 / (u32::from(count) + 1);
            prop_assert!(moved < fair * 2 + 20, "{} of 300 moved", moved);
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let members = [member(1, 1), member(2, 2), member(3, 0), member(4, 5)];
        let mut counts: HashMap<String, u32> = HashMap::new();
        for object in 0..8000 {
            *counts.entry(owner(&members, object).unwrap()).or_default() += 1;
        }
        let share = |n: u8| counts.get(&format!("node-{n}")).copied().unwrap_or(0);
        assert!((900..1100).contains(&share(1)) && (1850..2150).contains(&share(2)) && share(3) == 0, "{counts:?}");
        let mine = Members::new(&members, "node-4", &[]).my_share();
        assert!((mine - 0.625).abs() < 1e-9);
    }

    #[test]
    fn a_node_alone_or_outside_reads_for_itself() {
        let alone = Members::new(&[], "x", &[]);
        assert!(alone.owns(&id(1), StripeIndex(0)) && alone.includes_me());
        assert_eq!(alone.route(&id(1), StripeIndex(0)), [Hop::Source]);
        let outside = Members::new(&[member(1, 1), member(2, 1)], "x", &[]);
        assert!(!outside.owns(&id(1), StripeIndex(0)) && !outside.includes_me());
        assert_eq!(outside.route(&id(1), StripeIndex(0)).len(), 3);
        let by_address = Members::new(&[member(1, 1)], "x", &[SocketAddr::from(([127, 0, 0, 1], 7070))]);
        assert!(by_address.is_alone() && by_address.includes_me());
    }
}
