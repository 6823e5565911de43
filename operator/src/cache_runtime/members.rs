//! Who is a member of a runtime. Stripes move when members change, so a node that can't be reached for a moment stays, while a node whose storage
//! came back in another pod is followed at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use forebay_protocol::config::{Member, MemberState};

/// A node that can't be reached for this long is no member any more.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Known nodes by node id.
#[derive(Clone, Debug, Default)]
pub struct Membership(BTreeMap<String, Known>);

#[derive(Clone, Debug)]
struct Known {
    address: SocketAddr,
    zone: Option<String>,
    seen: Instant,
}

/// A node that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Identity of its storage.
    pub id: String,
    /// Where it answers.
    pub address: SocketAddr,
    /// The failure domain of the node it runs on.
    pub zone: Option<String>,
}

impl Membership {
    /// What a configuration says, for an operator that has just started: they get the full patience.
    pub fn restore(&mut self, members: &[Member], now: Instant) {
        for member in members {
            if let Some(id) = &member.id {
                let known = Known { address: member.address, zone: member.zone.clone(), seen: now };
                self.0.entry(id.clone()).or_insert(known);
            }
        }
    }

    /// Takes in what answers now and forgets who has been silent for too long.
    pub fn observe(&mut self, present: impl IntoIterator<Item = Present>, now: Instant) {
        for Present { id, address, zone } in present {
            // An address belongs to whom it was last seen at.
            self.0.retain(|known, at| *known == id || at.address != address);
            self.0.insert(id, Known { address, zone, seen: now });
        }
        self.0.retain(|_, known| now.duration_since(known.seen) < PATIENCE);
    }

    /// Forgets those who were leaving in `published` and whose pods are gone: nothing is expected of them any more.
    pub fn forget_left(&mut self, published: &[Member], pods: &BTreeSet<SocketAddr>) {
        for member in published.iter().filter(|member| !member.state.is_active() && !pods.contains(&member.address)) {
            self.0.retain(|id, known| Some(id) != member.id.as_ref() || known.address != member.address);
        }
    }

    /// Who was last seen at an address.
    pub fn id_at(&self, address: SocketAddr) -> Option<&str> {
        self.0.iter().find(|(_, known)| known.address == address).map(|(id, _)| id.as_str())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All members, by id; those at `leaving` are to leave.
    pub fn members(&self, leaving: &BTreeSet<SocketAddr>) -> Vec<Member> {
        let member = |(id, known): (&String, &Known)| Member {
            id: Some(id.clone()),
            zone: known.zone.clone(),
            state: if leaving.contains(&known.address) { MemberState::Leaving } else { MemberState::Active },
            ..Member::at(known.address)
        };
        self.0.iter().map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 7070))
    }

    fn seen(membership: &mut Membership, present: &[(&str, u8)], now: Instant) -> Vec<(String, SocketAddr)> {
        let present = present.iter().map(|(id, last)| Present {
            id: (*id).to_owned(),
            address: address(*last),
            zone: Some("a".to_owned()),
        });
        membership.observe(present, now);
        membership.members(&BTreeSet::new()).into_iter().map(|member| (member.id.unwrap(), member.address)).collect()
    }

    #[test]
    fn a_node_that_is_silent_for_less_than_a_minute_stays_a_member() {
        let (mut membership, start) = (Membership::default(), Instant::now());
        seen(&mut membership, &[("b", 2), ("a", 1)], start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seen(&mut membership, &[("a", 1)], after(59)).len(), 2);
        assert_eq!(seen(&mut membership, &[("a", 1)], after(61)), [("a".to_owned(), address(1))]);
    }

    #[test]
    fn a_storage_that_comes_back_in_another_pod_keeps_its_id_and_gets_the_new_address_at_once() {
        let (mut membership, start) = (Membership::default(), Instant::now());
        seen(&mut membership, &[("a", 1), ("b", 2)], start);
        assert_eq!(
            seen(&mut membership, &[("a", 9), ("b", 2)], start),
            [("a".to_owned(), address(9)), ("b".to_owned(), address(2))]
        );
    }

    #[test]
    fn an_address_that_another_node_answers_at_is_no_longer_the_silent_one_s() {
        let (mut membership, start) = (Membership::default(), Instant::now());
        seen(&mut membership, &[("a", 1)], start);
        assert_eq!(seen(&mut membership, &[("b", 1)], start), [("b".to_owned(), address(1))]);
    }

    #[test]
    fn an_operator_that_starts_takes_the_members_from_the_configuration() {
        let (mut membership, start) = (Membership::default(), Instant::now());
        membership.restore(&[Member { id: Some("a".into()), ..Member::at(address(1)) }], start);
        assert_eq!(seen(&mut membership, &[("b", 2)], start).len(), 2);
    }

    #[test]
    fn who_left_is_forgotten_with_its_pod_and_comes_back_as_it_was() {
        let (mut membership, now) = (Membership::default(), Instant::now());
        seen(&mut membership, &[("a", 1), ("b", 2)], now);
        let leaving = BTreeSet::from([address(2)]);
        let published = membership.members(&leaving);
        assert_eq!(published[1].state, MemberState::Leaving);
        assert_eq!(published[1].zone.as_deref(), Some("a"));
        membership.forget_left(&published, &BTreeSet::from([address(1), address(2)]));
        assert_eq!(membership.count(), 2, "its pod is still there");
        membership.forget_left(&published, &BTreeSet::from([address(1)]));
        assert_eq!((membership.count(), membership.id_at(address(2))), (1, None));
        // The same storage in a new pod is a member at once.
        assert_eq!(seen(&mut membership, &[("b", 3)], now).len(), 2);
        membership.forget_left(&published, &BTreeSet::from([address(1), address(3)]));
        assert_eq!(membership.count(), 2);
    }
}
