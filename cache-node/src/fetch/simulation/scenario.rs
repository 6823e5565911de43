//! What happens in one run: who is a member, who reads what, who comes, leaves, dies and comes back. And what must be true all the while.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_protocol::config::{CHUNK_BYTES, Member, MemberState, PlacementConfig, PlacementMode};
use futures::future::join_all;
use futures::{StreamExt, stream};
use parking_lot::Mutex;

use super::super::{CatalogObject, Ensured, Purpose};
use super::world::{Faults, Life, Node, Random, Sent, Simulation, content};
use crate::units::{ChunkIndex, chunk_count};

/// Much longer than anything may take: who waits longer waits for ever.
const FOR_EVER: Duration = Duration::from_secs(6 * 3600);

/// Chunks that a reader wants at once.
const AT_ONCE: usize = 4;

/// What came of a run.
pub(super) struct Outcome {
    pub(super) what: String,
    pub(super) violations: Vec<String>,
    pub(super) trace_hash: String,
    pub(super) chunks: u64,
    pub(super) sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing happens.
    Calm,
    /// Members come and leave.
    Changes,
    /// Members die, and some come back.
    Deaths,
    /// Messages are lost, members are slow, the source refuses.
    Weather,
    /// All of it.
    Everything,
}

struct Play {
    simulation: Arc<Simulation>,
    config: PlacementConfig,
    members: Mutex<Vec<Member>>,
    violations: Mutex<Vec<String>>,
    /// Deaths, returns and changes of the members: each may cost one more read of a chunk.
    disruptions: Mutex<u64>,
    kind: Kind,
}

fn address(n: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8], 7070))
}

fn new_member(random: &mut Random, n: u64, zones: u64) -> Member {
    Member {
        id: Some(format!("node-{n}")),
        address: address(n),
        // The first one owns something, so that somebody does.
        weight: if n > 1 && random.permille(50) { 0 } else { random.within(1, 4) as u32 },
        zone: (zones > 0).then(|| format!("zone-{}", random.within(0, zones))),
        state: MemberState::Active,
    }
}

/// Plays the run of a seed.
pub(super) async fn play(seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let kind = [Kind::Calm, Kind::Changes, Kind::Deaths, Kind::Weather, Kind::Everything][random.within(0, 5) as usize];
    let mode = [PlacementMode::Auto, PlacementMode::Auto, PlacementMode::Sharded, PlacementMode::Everywhere]
        [random.within(0, 4) as usize];
    let config = PlacementConfig { mode, replicas: random.within(1, 4) as u32 };
    let (count, zones) = (random.within(2, 9), random.within(0, 4));
    let members: Vec<_> = (1..=count).map(|n| new_member(&mut random, n, zones)).collect();
    let stormy = matches!(kind, Kind::Weather | Kind::Everything);
    let faults = Faults {
        lost: if stormy { random.within(0, 60) } else { 0 },
        refused: if stormy && random.permille(300) { random.within(1, 100) } else { 0 },
    };
    let mut sizes: Vec<_> = (0..random.within(2, 7)).map(|_| random.within(1, 12 * CHUNK_BYTES)).collect();
    if random.permille(200) {
        // Of two stripes.
        sizes.push(70 * CHUNK_BYTES + 1);
    }
    let what = format!("{kind:?}, {config:?}, {count} members in {zones} zones, {} objects, {faults:?}", sizes.len());
    let simulation = Simulation::new(random, sizes, faults);
    let play = Arc::new(Play {
        simulation: Arc::clone(&simulation),
        config,
        members: Mutex::new(members.clone()),
        violations: Mutex::default(),
        disruptions: Mutex::new(0),
        kind,
    });
    for member in &members {
        simulation.add(member.clone()).start(&simulation, &members, config);
    }
    let played = async {
        let readers = play.readers();
        let director = tokio::spawn(Arc::clone(&play).direct(count));
        join_all(readers).await;
        director.await.expect("the director");
        let before = simulation.sent.lock().clone();
        play.check_sent(&before);
        // What anybody has read is somewhere; everybody reads everything.
        let living = simulation.living();
        let all = living.into_iter().map(|(node, life)| play.read(node, life, simulation.objects.clone()));
        join_all(all).await;
        let after = simulation.sent.lock().clone();
        play.check_sent(&after);
        play.check_kept(&before, &after);
    };
    if tokio::time::timeout(FOR_EVER, played).await.is_err() {
        play.complain("somebody waits for ever".to_owned());
    }
    let sent = simulation.sent.lock();
    let violations = std::mem::take(&mut *play.violations.lock());
    let (chunks, times) = (sent.len() as u64, sent.values().map(|sent| sent.times).sum());
    Outcome { what, violations, trace_hash: simulation.trace_hash(), chunks, sent: times }
}

impl Play {
    fn within(&self, from: u64, to: u64) -> u64 {
        self.simulation.within(from, to)
    }

    async fn wait(&self, from_millis: u64, to_millis: u64) {
        let millis = self.within(from_millis, to_millis);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn complain(&self, violation: String) {
        self.violations.lock().push(violation);
    }

    /// One to three on each node, which read some of the objects in an order of their own, or all in the same order.
    fn readers(self: &Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let together = self.within(0, 2) == 0;
        let mut readers = Vec::new();
        for (node, life) in self.simulation.living() {
            for _ in 0..self.within(1, 4) {
                let mut objects = self.simulation.objects.clone();
                if !together {
                    let (first, count) =
                        (self.within(0, objects.len() as u64), self.within(1, objects.len() as u64 + 1));
                    objects.rotate_left(first as usize);
                    objects.truncate(count as usize);
                }
                let (this, node, life) = (Arc::clone(self), Arc::clone(&node), Arc::clone(&life));
                readers.push(tokio::spawn(async move { this.read(node, life, objects).await }));
            }
        }
        readers
    }

    /// Reads objects as long as the node lives.
    async fn read(&self, node: Arc<Node>, life: Arc<Life>, objects: Vec<CatalogObject>) {
        let dead = life.dead.clone();
        let read = async {
            for object in &objects {
                let chunks = (0..chunk_count(object.stored.size)).map(ChunkIndex);
                stream::iter(chunks)
                    .for_each_concurrent(AT_ONCE, |chunk| self.read_chunk(&node, &life, object, chunk))
                    .await;
            }
        };
        tokio::select! {
            biased;
            () = dead.cancelled() => {}
            () = read => {}
        }
    }

    async fn read_chunk(&self, node: &Node, life: &Life, object: &CatalogObject, chunk: ChunkIndex) {
        let id = object.stored.id;
        let ensured = life.fetcher.ensure(&life.dataset(), object, chunk, Purpose::Reader).await;
        let at = node.address();
        match ensured {
            Ok(Ensured::Present) if node.holds(&id, chunk) => {}
            Ok(Ensured::Fetched(fetched)) if fetched.bytes == Some(content(&id, chunk)) && node.holds(&id, chunk) => {}
            Ok(other) => self.complain(format!("{at} has read {id} {} and got {other:?}", chunk.0)),
            Err(error) => {
                let refused =
                    self.simulation.sent.lock().get(&(*id.as_bytes(), chunk.0)).map_or(0, |sent| sent.refused);
                if refused == 0 {
                    self.complain(format!("{at} can't read {id} {}, and nobody is to blame: {error}", chunk.0));
                }
            }
        }
    }

    /// Makes things happen.
    async fn direct(self: Arc<Self>, count: u64) {
        let mut next = count + 1;
        let events = if self.kind == Kind::Calm { 0 } else { self.within(1, 4) };
        for _ in 0..events {
            self.wait(0, 400).await;
            let happens = match self.kind {
                Kind::Calm => return,
                Kind::Changes => self.within(0, 2),
                Kind::Deaths => 2,
                Kind::Weather => 3,
                Kind::Everything => self.within(0, 4),
            };
            match happens {
                0 => {
                    self.join(next).await;
                    next += 1;
                }
                1 => self.leave().await,
                2 => self.die().await,
                _ => self.slow_down().await,
            }
        }
    }

    fn pick(&self) -> Option<(Arc<Node>, Arc<Life>)> {
        let mut living = self.simulation.living();
        if living.len() < 2 {
            return None;
        }
        let picked = self.within(0, living.len() as u64) as usize;
        Some(living.swap_remove(picked))
    }

    fn note_disruption(&self, what: std::fmt::Arguments<'_>) {
        *self.disruptions.lock() += 1;
        self.simulation.note(what);
    }

    /// Everybody sees the new config, one after the other.
    async fn spread(&self) {
        let members = self.members.lock().clone();
        let mut nodes: Vec<_> = self.simulation.living().into_iter().map(|(node, _)| node).collect();
        let first = self.within(0, nodes.len() as u64) as usize;
        nodes.rotate_left(first);
        for node in nodes {
            self.wait(0, 300).await;
            node.apply(&self.simulation, &members, self.config);
        }
    }

    async fn join(&self, n: u64) {
        let member = {
            let mut random = self.simulation.random.lock();
            new_member(&mut random, n, 3)
        };
        self.note_disruption(format_args!("{} joins", member.address));
        let members = {
            let mut members = self.members.lock();
            members.push(member.clone());
            members.clone()
        };
        self.simulation.add(member).start(&self.simulation, &members, self.config);
        self.spread().await;
    }

    async fn leave(&self) {
        let Some((node, life)) = self.pick() else { return };
        let leaver = node.address();
        let owners = self.members.lock().iter().filter(|member| member.weight > 0 && member.address != leaver).count();
        if owners == 0 {
            return;
        }
        self.note_disruption(format_args!("{leaver} leaves"));
        if let Some(member) = self.members.lock().iter_mut().find(|member| member.address == leaver) {
            member.state = MemberState::Leaving;
        }
        self.spread().await;
        if !self.drain(&node, &life).await {
            self.note_disruption(format_args!("{leaver} goes without having handed over everything"));
        }
        self.members.lock().retain(|member| member.address != leaver);
        self.note_disruption(format_args!("{leaver} has left"));
        self.spread().await;
        node.kill();
    }

    /// Hands over what a node holds, as the engine does; false when somebody can't take it.
    async fn drain(&self, node: &Node, life: &Life) -> bool {
        for _ in 0..20 {
            let mut left = 0;
            for object in &self.simulation.objects {
                for chunk in (0..chunk_count(object.stored.size)).map(ChunkIndex) {
                    if node.holds(&object.stored.id, chunk) {
                        left += self.hand_over(node, life, object, chunk).await;
                    }
                }
            }
            if left == 0 {
                return true;
            }
            self.wait(900, 1100).await;
        }
        false
    }

    /// How many of the heirs have not taken it.
    async fn hand_over(&self, node: &Node, life: &Life, object: &CatalogObject, chunk: ChunkIndex) -> u64 {
        let id = object.stored.id;
        let dataset = life.dataset();
        let placement = super::super::worlds::Content::placement(dataset.as_ref());
        let mut left = 0;
        for heir in placement.heirs(&id, chunk) {
            let heir = placement.members().address(heir).and_then(|address| self.simulation.node(address)?.life());
            let taken = match heir {
                Some(heir) => {
                    let theirs = heir.dataset();
                    let keeps = super::super::worlds::Content::placement(theirs.as_ref()).keeps(&id, chunk.stripe());
                    let adopted = tokio::select! {
                        biased;
                        () = heir.dead.cancelled() => Ok(false),
                        adopted = heir.fetcher.adopt(&theirs, object, chunk, node.address()) => adopted,
                    };
                    keeps && adopted.is_ok_and(|adopted| adopted)
                }
                None => false,
            };
            left += u64::from(!taken);
        }
        left
    }

    async fn die(&self) {
        let Some((node, _)) = self.pick() else { return };
        self.note_disruption(format_args!("{} dies", node.address()));
        node.kill();
        self.wait(0, 5000).await;
        if self.within(0, 3) > 0 {
            let keeps_disk = self.within(0, 3) > 0;
            if !keeps_disk {
                node.disk.lock().clear();
            }
            self.note_disruption(format_args!("{} comes back, with its disk: {keeps_disk}", node.address()));
            let members = self.members.lock().clone();
            node.start(&self.simulation, &members, self.config);
        }
    }

    async fn slow_down(&self) {
        let Some((node, _)) = self.pick() else { return };
        let slow = Duration::from_millis(self.within(100, 90_000));
        self.simulation.note(format_args!("{} is slow: {slow:?}", node.address()));
        *node.slow.lock() = slow;
        self.wait(0, 5000).await;
        *node.slow.lock() = Duration::ZERO;
    }

    /// The source has sent each chunk once, and once more at most for each thing that went wrong.
    fn check_sent(&self, sent: &BTreeMap<([u8; 16], u32), Sent>) {
        let disruptions = *self.disruptions.lock();
        let nodes = self.simulation.nodes.read().len() as u64;
        for ((_, chunk), sent) in sent {
            // Who is refused tries for itself, as does everyone who was refused through it.
            let most = 1 + disruptions + sent.lost + sent.refused * nodes;
            if sent.times > most {
                self.complain(format!(
                    "chunk {chunk} was sent {} times, at most {most} were to be expected",
                    sent.times
                ));
            }
        }
    }

    /// Where nobody has died and no message was lost, what was there once is never read from the source again.
    fn check_kept(&self, before: &BTreeMap<([u8; 16], u32), Sent>, after: &BTreeMap<([u8; 16], u32), Sent>) {
        if !matches!(self.kind, Kind::Calm | Kind::Changes) {
            return;
        }
        for (key, before) in before.iter().filter(|(_, sent)| sent.times > 0) {
            let after = after.get(key).copied().unwrap_or_default();
            if after.times > before.times {
                self.complain(format!("chunk {} was there, and was read from the source again", key.1));
            }
        }
    }
}
