//! The members of a runtime and their order for a key: weighted rendezvous hashing. Every node computes the same ranking from the same members,
//! and a member that comes or goes moves only its own share.

use std::net::SocketAddr;

use forebay_protocol::config::Member;

/// Position of a member in [`Members`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberIndex(usize);

/// All members, and which of them this node is.
#[derive(Clone, Debug, PartialEq)]
pub struct Members {
    members: Vec<(String, Member)>,
    me: Option<MemberIndex>,
}

/// Which members a ranking is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// Those that own something: of some weight, and not leaving.
    Owners,
    /// Those, and the leaving ones as if they stayed.
    OwnersAndLeaving,
}

impl Members {
    /// The members of a config. This node is the one with `node_id`, or else the one at one of `addresses`.
    pub fn new(members: &[Member], node_id: &str, addresses: &[SocketAddr]) -> Self {
        let by_id = members.iter().position(|member| member.id.as_deref() == Some(node_id));
        let me = by_id.or_else(|| members.iter().position(|member| addresses.contains(&member.address)));
        let members = members.iter().map(|member| (member.placement_id(), member.clone())).collect();
        Self { members, me: me.map(MemberIndex) }
    }

    /// The same without this node: who owned what before it came.
    #[must_use]
    pub fn without_me(&self) -> Self {
        let others = self.members.iter().zip(0..).filter(|(_, index)| Some(MemberIndex(*index)) != self.me);
        Self { members: others.map(|(member, _)| member.clone()).collect(), me: None }
    }

    /// Whether this node is alone: it does everything itself.
    pub fn is_alone(&self) -> bool {
        self.others().next().is_none()
    }

    /// Whether this node is one of the members, or needs not be.
    pub fn includes_me(&self) -> bool {
        self.me.is_some() || self.members.is_empty()
    }

    /// Whether this node is asked to leave.
    pub fn am_leaving(&self) -> bool {
        self.me.is_some_and(|me| self.is_leaving(me))
    }

    /// This node.
    pub fn me(&self) -> Option<MemberIndex> {
        self.me
    }

    /// Where a member's node API answers.
    pub fn address(&self, member: MemberIndex) -> Option<SocketAddr> {
        self.get(member).map(|member| member.address)
    }

    /// What a member is known by.
    pub fn id(&self, member: MemberIndex) -> Option<&str> {
        self.members.get(member.0).map(|(id, _)| id.as_str())
    }

    /// The member that is known by `id`.
    pub fn find(&self, id: &str) -> Option<MemberIndex> {
        self.members.iter().position(|(other, _)| other == id).map(MemberIndex)
    }

    /// Everyone but this node.
    pub fn others(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        (0..self.members.len()).map(MemberIndex).filter(|member| Some(*member) != self.me)
    }

    /// Whether a member is asked to leave.
    pub fn is_leaving(&self, member: MemberIndex) -> bool {
        self.get(member).is_some_and(|member| !member.state.is_active())
    }

    /// This node's part of all weights; 0 when it owns nothing.
    pub fn my_share(&self) -> f64 {
        let weight = |member: &Member| if owns_anything(member) { u64::from(member.weight) } else { 0 };
        let total: u64 = self.members.iter().map(|(_, member)| weight(member)).sum();
        let mine = self.me.and_then(|me| self.get(me)).map_or(0, weight);
        if total == 0 { 1.0 } else { mine as f64 / total as f64 }
    }

    /// The members that are to make a dataset's catalog before this node does.
    pub fn before_me_for_catalog(&self, dataset_uid: &str) -> Vec<MemberIndex> {
        let ranked = self.ranking(dataset_uid.as_bytes(), Among::Owners).into_iter();
        ranked.take_while(|member| Some(*member) != self.me).collect()
    }

    /// Those that own anything, in the order of their ids, which is the same on all nodes.
    pub(super) fn by_id(&self) -> Vec<MemberIndex> {
        let mut owners: Vec<_> =
            self.members.iter().zip(0..).filter(|((_, member), _)| owns_anything(member)).collect();
        owners.sort_by(|((a, _), _), ((b, _), _)| a.cmp(b));
        owners.into_iter().map(|(_, index)| MemberIndex(index)).collect()
    }

    /// The first for `key` first.
    pub(super) fn ranking(&self, key: &[u8], among: Among) -> Vec<MemberIndex> {
        let mut scores: Vec<_> = self.scores(key, among).collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores.into_iter().map(|(_, member)| member).collect()
    }

    /// The first for `key`.
    pub(super) fn first(&self, key: &[u8]) -> Option<MemberIndex> {
        self.scores(key, Among::Owners).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, member)| member)
    }

    /// The ranking, beginning with `count` of different zones while there are zones left.
    pub(super) fn ranking_over_zones(&self, key: &[u8], among: Among, count: usize) -> Vec<MemberIndex> {
        let ranking = self.ranking(key, among);
        if count <= 1 {
            return ranking;
        }
        let mut zones = Vec::new();
        let (mut spread, rest): (Vec<_>, Vec<_>) = ranking.into_iter().partition(|member| {
            let zone = self.zone(*member);
            let new = zones.len() < count && !zones.contains(&zone);
            if new {
                zones.push(zone);
            }
            new
        });
        spread.extend(rest);
        spread
    }

    /// Whether a member is in this node's zone; true where zones are not told.
    pub(super) fn is_near(&self, member: MemberIndex) -> bool {
        self.me.is_none_or(|me| self.zone(me) == self.zone(member))
    }

    fn zone(&self, member: MemberIndex) -> Option<&str> {
        self.get(member).and_then(|member| member.zone.as_deref())
    }

    fn get(&self, member: MemberIndex) -> Option<&Member> {
        self.members.get(member.0).map(|(_, member)| member)
    }

    fn scores<'a>(&'a self, key: &'a [u8], among: Among) -> impl Iterator<Item = (f64, MemberIndex)> + 'a {
        let members = self.members.iter().enumerate().filter(move |(_, (_, member))| {
            member.weight > 0 && (among == Among::OwnersAndLeaving || member.state.is_active())
        });
        members.map(move |(index, (id, member))| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&(id.len() as u64).to_le_bytes());
            hasher.update(id.as_bytes());
            hasher.update(key);
            let mut bits = [0; 8];
            hasher.finalize_xof().fill(&mut bits);
            // Uniform in the open interval (0, 1), with the 53 bits that a double holds.
            let uniform = ((u64::from_le_bytes(bits) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            (-f64::from(member.weight) / uniform.ln(), MemberIndex(index))
        })
    }
}

fn owns_anything(member: &Member) -> bool {
    member.weight > 0 && member.state.is_active()
}
