//! Who is a member of a runtime. Stripes move when members change, so a node that can't be reached for a moment stays, while a node whose storage
//! came back in another pod is followed at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use forebay_protocol::config::Member;

/// A node that can't be reached for this long is no member any more.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Known nodes by node id, with where and when they were last seen.
#[derive(Clone, Debug, Default)]
pub struct Membership(BTreeMap<String, (SocketAddr, Instant)>);

impl Membership {
    /// What a configuration says, for an operator that has just started: they get the full patience.
    pub fn restore(&mut self, members: &[Member], now: Instant) {
        for member in members {
            if let Some(id) = &member.id {
                self.0.entry(id.clone()).or_insert((member.address, now));
            }
        }
    }

    /// Takes in what answers now (node id and address) and forgets who has been silent for too long.
    pub fn observe(&mut self, present: impl IntoIterator<Item = (String, SocketAddr)>, now: Instant) {
        for (id, address) in present {
            // An address belongs to whom it was last seen at.
            self.0.retain(|known, (at, _)| *known == id || *at != address);
            self.0.insert(id, (address, now));
        }
        self.0.retain(|_, (_, seen)| now.duration_since(*seen) < PATIENCE);
    }

    /// All members, by id.
    pub fn members(&self) -> Vec<Member> {
        self.0.iter().map(|(id, (address, _))| Member { id: Some(id.clone()), ..Member::at(*address) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 7070))
    }

    fn seen(membership: &mut Membership, present: &[(&str, u8)], now: Instant) -> Vec<(String, SocketAddr)> {
        membership.observe(present.iter().map(|(id, last)| ((*id).to_owned(), address(*last))), now);
        membership.members().into_iter().map(|member| (member.id.unwrap(), member.address)).collect()
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
}
