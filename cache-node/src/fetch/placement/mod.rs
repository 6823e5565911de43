//! Who keeps what, and who asks whom: pure plans over the members of the config and the placement of one dataset. Every node makes the same
//! plan from the same config; where two configs are in use at once, a chunk may be read twice, but nobody waits for ever (see [`Reach`]).

mod members;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::config::{PlacementConfig, PlacementMode};
use tokio::time::Instant;

use members::Among;
pub use members::{MemberIndex, Members};

use super::Purpose;
use super::peers::Reach;
use crate::units::{CHUNKS_PER_STRIPE, ChunkIndex, StripeIndex, stripe_count};

/// How long those who owned something before a change are asked for it ...
const REMEMBERED: Duration = Duration::from_secs(3600);
/// ... and how many changes back: members often come one after the other.
const CHANGES: usize = 8;

/// How many are asked for what they hold when those who should have it can't be reached.
const SUBSTITUTES: usize = 7;

/// How many members may have come shortly before this node, without having got their share yet.
const NEWCOMERS: usize = 3;

/// How many are asked in all.
const MOST_HOLDERS: usize = 12;

/// Of the former holders of a dataset that was everywhere, how many are asked: each has all of it.
const FORMER_OF_EVERYWHERE: usize = 2;

/// The placement of one dataset.
#[derive(Clone, Debug)]
pub struct Placement {
    now: Rule,
    /// The latest first.
    former: Vec<Former>,
    /// The dataset is younger than this node's last start: what was before that start is of no interest.
    is_new: Arc<AtomicBool>,
}

/// Who keeps what at one time.
#[derive(Clone, Debug)]
struct Rule {
    members: Arc<Members>,
    config: PlacementConfig,
    /// With `Everywhere`: those that bring, in turn.
    turns: Vec<MemberIndex>,
}

/// Who kept what before a change, and until when that is of interest.
#[derive(Clone, Debug)]
struct Former {
    rule: Rule,
    until: Instant,
    /// Who has just started does not know what was before. The next in the ranking are those that owned it before the last members came.
    at_start: bool,
}

/// A member to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it answers.
    pub address: SocketAddr,
    /// How far it may go.
    pub reach: Reach,
}

impl Placement {
    /// The placement of a dataset that nobody held before.
    pub fn new(members: Arc<Members>, config: PlacementConfig) -> Self {
        Self { now: Rule::new(members, config), former: Vec::new(), is_new: Arc::default() }
    }

    /// The placement on a node that has just started: others may have kept what it owns while it was away, or before it came.
    #[must_use]
    pub fn after_start(members: Arc<Members>, config: PlacementConfig) -> Self {
        let rule = Rule::new(Arc::new(members.without_me()), config);
        let former = if members.is_alone() { Vec::new() } else { vec![Former::until_later(rule, true)] };
        Self { now: Rule::new(members, config), former, is_new: Arc::default() }
    }

    /// The placement after a change of the members or of the dataset's config. What was before that is remembered for a while.
    #[must_use]
    pub fn changed(&self, members: Arc<Members>, config: PlacementConfig) -> Self {
        let mut former = self.former.clone();
        if !self.is_of(&members, config) {
            former.insert(0, Former::until_later(self.now.clone(), false));
            former.truncate(CHANGES);
        }
        Self { now: Rule::new(members, config), former, is_new: Arc::clone(&self.is_new) }
    }

    /// The dataset has come into being since this node was started: nobody can have kept anything of it before.
    pub fn note_new(&self) {
        self.is_new.store(true, Ordering::Relaxed);
    }

    /// Whether it is made of these.
    pub fn is_of(&self, members: &Members, config: PlacementConfig) -> bool {
        *self.now.members == *members && self.now.config == config
    }

    /// All members.
    pub fn members(&self) -> &Arc<Members> {
        &self.now.members
    }

    /// How the dataset is spread.
    pub fn mode(&self) -> PlacementMode {
        self.now.config.mode
    }

    /// Whether this node is to keep a stripe.
    pub fn keeps(&self, id: &ObjectId, stripe: StripeIndex) -> bool {
        self.now.keeps(id, stripe)
    }

    /// Whether this node is to keep any stripe of an object.
    pub fn keeps_any(&self, id: &ObjectId, size: u64) -> bool {
        (0..stripe_count(size).max(1)).any(|stripe| self.keeps(id, StripeIndex(stripe)))
    }

    /// Whether this node was to keep any stripe of an object lately; the new owners may still want it.
    pub fn kept_before(&self, id: &ObjectId, size: u64) -> bool {
        self.remembered().any(|Former { rule, .. }| {
            rule.members.me().is_some()
                && (0..stripe_count(size).max(1)).any(|stripe| rule.keeps(id, StripeIndex(stripe)))
        })
    }

    fn remembered(&self) -> impl Iterator<Item = &Former> {
        let (now, is_new) = (Instant::now(), self.is_new.load(Ordering::Relaxed));
        self.former.iter().filter(move |former| former.until > now && !(is_new && former.at_start))
    }

    /// The member that reads a chunk from the source; none where nobody owns anything.
    pub fn bringer(&self, id: &ObjectId, chunk: ChunkIndex) -> Option<MemberIndex> {
        self.now.bringer(id, chunk)
    }

    /// Whether this node reads a chunk from the source.
    pub fn is_bringer(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        let members = &self.now.members;
        members.is_alone() || self.bringer(id, chunk).is_none_or(|bringer| Some(bringer) == members.me())
    }

    /// All members that bring, with `Everywhere`, those behind this node first: so each begins with another one.
    pub fn bringers_behind_me(&self) -> Vec<MemberIndex> {
        let turns = &self.now.turns;
        let me = turns.iter().position(|member| Some(*member) == self.now.members.me());
        let mut others = turns.clone();
        others.rotate_left(me.map_or(0, |me| (me + 1) % turns.len()));
        others.retain(|member| Some(*member) != self.now.members.me());
        others
    }

    /// How many members keep each chunk.
    pub fn copies(&self) -> usize {
        match self.mode() {
            PlacementMode::Everywhere => self.now.turns.len().max(1),
            PlacementMode::Auto | PlacementMode::Sharded => self.now.turns.len().clamp(1, self.now.owners()),
        }
    }

    /// The members that are to keep a chunk when this node has gone: with `Everywhere` one that gives it to the others.
    pub fn heirs(&self, id: &ObjectId, chunk: ChunkIndex) -> Vec<MemberIndex> {
        let owners = match self.mode() {
            PlacementMode::Everywhere => 1,
            PlacementMode::Auto | PlacementMode::Sharded => self.now.owners(),
        };
        let ranking = self.now.ranking(id, chunk, Among::Owners).into_iter();
        ranking.take(owners).filter(|member| Some(*member) != self.now.members.me()).collect()
    }

    /// Whom to ask for a chunk that is not here, in order; when nobody has helped, it is this node's to bring.
    pub fn route(&self, id: &ObjectId, chunk: ChunkIndex, purpose: Purpose) -> Vec<Step> {
        let members = &self.now.members;
        if purpose == Purpose::Owner || members.is_alone() || self.is_bringer(id, chunk) {
            return Vec::new();
        }
        let ranking = self.now.ranking(id, chunk, Among::Owners);
        let owners = match self.mode() {
            PlacementMode::Everywhere => 1,
            PlacementMode::Auto | PlacementMode::Sharded => self.now.owners().min(ranking.len()),
        };
        let me = ranking.iter().position(|member| Some(*member) == members.me());
        let before_me = ranking.get(..me.unwrap_or(ranking.len())).unwrap_or_default();
        let am_owner = me.is_some_and(|me| me < owners);
        let plain = |member: &MemberIndex| (*member, Reach::Source);
        let asked: Vec<_> = match purpose {
            // Asked to relay by one with another config: the first owner is still the one to bring it.
            Purpose::Relay if !am_owner => ranking.first().map(plain).into_iter().collect(),
            _ if am_owner => before_me.iter().map(plain).collect(),
            _ => {
                let (owners, behind) = before_me.split_at(owners.min(before_me.len()));
                let first = owners.first().copied();
                let relay =
                    |member: &MemberIndex| (*member, if Some(*member) == first { Reach::Source } else { Reach::Relay });
                let near = owners.iter().filter(|owner| members.is_near(**owner)).map(relay);
                let far = owners.iter().filter(|owner| !members.is_near(**owner)).map(relay);
                near.chain(far).chain(behind.iter().map(plain)).collect()
            }
        };
        let step = |(member, reach)| Some(Step { address: members.address(member)?, reach });
        asked.into_iter().filter_map(step).collect()
    }

    /// Who may hold a chunk that this node is about to read from the source: leaving members, those who kept it before the last change, and,
    /// where this node stands in for one that can't be reached, those that come after it. Nobody when nothing has happened.
    pub fn holders(&self, id: &ObjectId, chunk: ChunkIndex) -> Vec<SocketAddr> {
        let mut holders = self.former_holders(id, chunk);
        if !self.is_bringer(id, chunk) {
            let members = &self.now.members;
            let ranking = self.now.ranking(id, chunk, Among::Owners);
            // Those before this node have been asked already; one that owns nothing may be asked by who does not know that yet.
            let behind = ranking.iter().position(|member| Some(*member) == members.me()).map_or(0, |me| me + 1);
            let only_readers = members.others().filter(|member| !ranking.contains(member));
            let behind = ranking.get(behind..).unwrap_or_default().iter().copied().chain(only_readers);
            holders.extend(behind.take(SUBSTITUTES));
        }
        self.addresses(holders)
    }

    /// Everyone who is likely to hold a chunk, whatever this node's part in it.
    pub fn all_holders(&self, id: &ObjectId, chunk: ChunkIndex) -> Vec<SocketAddr> {
        let mut holders = self.now.ranking(id, chunk, Among::Owners);
        holders.truncate(self.copies().min(SUBSTITUTES));
        holders.extend(self.former_holders(id, chunk));
        self.addresses(holders)
    }

    fn former_holders(&self, id: &ObjectId, chunk: ChunkIndex) -> Vec<MemberIndex> {
        let members = &self.now.members;
        let mut holders = Vec::new();
        if members.others().any(|member| members.is_leaving(member)) {
            match self.mode() {
                PlacementMode::Everywhere => {
                    holders.extend(members.others().filter(|other| members.is_leaving(*other)));
                }
                PlacementMode::Auto | PlacementMode::Sharded => {
                    let as_if_all_stayed = self.now.ranking(id, chunk, Among::OwnersAndLeaving).into_iter();
                    holders
                        .extend(as_if_all_stayed.take(self.now.owners()).filter(|member| members.is_leaving(*member)));
                }
            }
        }
        for Former { rule, at_start, .. } in self.remembered() {
            let count = match rule.config.mode {
                // Whose turn it was depends on how many there were; but anyone may have it.
                PlacementMode::Everywhere if *at_start => MOST_HOLDERS,
                PlacementMode::Everywhere => FORMER_OF_EVERYWHERE,
                PlacementMode::Auto | PlacementMode::Sharded if *at_start => rule.owners() + NEWCOMERS,
                PlacementMode::Auto | PlacementMode::Sharded => rule.owners(),
            };
            let before = rule.ranking(id, chunk, Among::Owners).into_iter();
            let still_there = before.filter_map(|member| members.find(rule.members.id(member)?));
            holders.extend(still_there.take(count));
        }
        holders
    }

    /// Each once, without this node.
    fn addresses(&self, members: Vec<MemberIndex>) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for member in members {
            if let Some(address) = self.now.members.address(member)
                && Some(member) != self.now.members.me()
                && !addresses.contains(&address)
                && addresses.len() < MOST_HOLDERS
            {
                addresses.push(address);
            }
        }
        addresses
    }
}

impl Former {
    fn until_later(rule: Rule, at_start: bool) -> Self {
        Self { rule, until: Instant::now() + REMEMBERED, at_start }
    }
}

impl Rule {
    fn new(members: Arc<Members>, config: PlacementConfig) -> Self {
        let turns = members.by_id();
        Self { members, config, turns }
    }

    /// Owners of each stripe, where there are enough members.
    fn owners(&self) -> usize {
        self.config.replicas.max(1) as usize
    }

    fn keeps(&self, id: &ObjectId, stripe: StripeIndex) -> bool {
        let me = self.members.me();
        if self.members.is_alone() || self.turns.is_empty() {
            // Without any owner everyone looks after itself.
            return true;
        }
        match self.config.mode {
            PlacementMode::Everywhere => self.turns.iter().any(|member| Some(*member) == me),
            PlacementMode::Auto | PlacementMode::Sharded if self.owners() == 1 => {
                self.members.first(&stripe_key(id, stripe)) == me
            }
            PlacementMode::Auto | PlacementMode::Sharded => {
                let first_chunk = ChunkIndex(stripe.0.saturating_mul(CHUNKS_PER_STRIPE));
                let ranking = self.ranking(id, first_chunk, Among::Owners);
                ranking.iter().take(self.owners()).any(|member| Some(*member) == me)
            }
        }
    }

    fn bringer(&self, id: &ObjectId, chunk: ChunkIndex) -> Option<MemberIndex> {
        match self.config.mode {
            PlacementMode::Everywhere => self.turns.get(turn(id, chunk).checked_rem(self.turns.len())?).copied(),
            PlacementMode::Auto | PlacementMode::Sharded => self.members.first(&stripe_key(id, chunk.stripe())),
        }
    }

    fn ranking(&self, id: &ObjectId, chunk: ChunkIndex, among: Among) -> Vec<MemberIndex> {
        match self.config.mode {
            PlacementMode::Everywhere => {
                let mut ranking = self.turns.clone();
                ranking.rotate_left(turn(id, chunk).checked_rem(self.turns.len()).unwrap_or(0));
                ranking
            }
            PlacementMode::Auto | PlacementMode::Sharded => {
                self.members.ranking_over_zones(&stripe_key(id, chunk.stripe()), among, self.owners())
            }
        }
    }
}

/// Whose turn it is: the next member for each chunk, beginning anywhere.
fn turn(id: &ObjectId, chunk: ChunkIndex) -> usize {
    let bytes = id.as_bytes();
    let begin = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    begin.wrapping_add(chunk.0) as usize
}

fn stripe_key(id: &ObjectId, stripe: StripeIndex) -> [u8; 20] {
    let mut key = [0; 20];
    let (front, back) = key.split_at_mut(16);
    front.copy_from_slice(id.as_bytes());
    back.copy_from_slice(&stripe.0.to_le_bytes());
    key
}
