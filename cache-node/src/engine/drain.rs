//! Leaving: a member that is asked to go offers what it holds to those that keep it from now on, and tells how far that is. It serves
//! meanwhile. What it holds is gone through again and again until all of it is with the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_protocol::node::{self, AdoptRequest};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use super::adopt::{ITEMS, Offer};
use crate::dataset::Dataset;
use crate::fetch::placement::{MemberIndex, Members};
use crate::problem::{Problem, Reason};
use crate::store::Presence;
use crate::units::{ChunkIndex, chunk_count};

/// Bytes of an offer: enough to be worth a question, few enough to be taken within seconds.
const OFFER: u64 = 64 << 20;

/// Offers that are on their way at once.
const OFFERS: usize = 8;

/// How long an offer may take: 64 MiB over a line of 10 Mbit/s.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two rounds while something is left.
const PAUSE: Duration = Duration::from_secs(1);

/// Rows of a catalog that are looked at in one go.
const WINDOW: usize = 1024;

/// A member on its way out.
#[derive(Debug)]
pub(super) struct Drain {
    members: Arc<Members>,
    progress: Arc<Mutex<node::Drain>>,
    _task: AbortOnDropHandle<()>,
}

/// An offer on its way.
struct Offered {
    dataset: Arc<Dataset>,
    heir: MemberIndex,
    /// Members that each of its chunks is offered to.
    heirs: u64,
    offer: Offer,
}

impl Engine {
    /// Begins, goes on or ends leaving, as the config says.
    pub(super) fn drain_if_leaving(self: &Arc<Self>, members: &Arc<Members>) {
        let mut drain = self.drain.lock();
        if !members.am_leaving() {
            if drain.take().is_some() {
                tracing::info!("this node stays after all");
            }
            return;
        }
        if drain.as_ref().is_some_and(|drain| drain.members == *members) {
            return;
        }
        tracing::info!("this node is asked to leave: it hands over what it holds");
        let progress =
            Arc::new(Mutex::new(node::Drain { total_bytes: 0, remaining_bytes: 0, done: false, problem: None }));
        let task = tokio::spawn(Arc::clone(self).drain(Arc::clone(members), Arc::clone(&progress)));
        *drain = Some(Drain { members: Arc::clone(members), progress, _task: AbortOnDropHandle::new(task) });
    }

    /// How far leaving is; none while this node stays.
    pub fn drain_status(&self) -> Option<node::Drain> {
        self.drain.lock().as_ref().map(|drain| drain.progress.lock().clone())
    }

    async fn drain(self: Arc<Self>, members: Arc<Members>, progress: Arc<Mutex<node::Drain>>) {
        loop {
            let problem = self.drain_round(&members, &progress).await;
            let done = problem.is_none();
            {
                let mut progress = progress.lock();
                if done {
                    progress.remaining_bytes = 0;
                }
                if done != progress.done {
                    tracing::info!(bytes = progress.total_bytes, done, "what this node held is with the others");
                }
                progress.done = done;
                progress.problem = problem.as_ref().map(Problem::to_proto);
            }
            if let Some(problem) = problem {
                tracing::debug!(%problem, "something can't be handed over yet");
            }
            tokio::time::sleep(if done { PAUSE * 10 } else { PAUSE }).await;
        }
    }

    /// Offers everything once; what kept some of it from being taken.
    async fn drain_round(
        self: &Arc<Self>,
        members: &Arc<Members>,
        progress: &Arc<Mutex<node::Drain>>,
    ) -> Option<Problem> {
        if let Err(error) = self.store.flush().await {
            return Some(Problem::new(Reason::StoreFailed, error.to_string()));
        }
        let mut datasets = self.all_datasets();
        datasets.sort_by(|a, b| a.uid().cmp(b.uid()));
        let without_catalog =
            datasets.iter().find(|dataset| dataset.catalog().is_none() && self.store.used_bytes_of(dataset.slot) > 0);
        let mut problem = without_catalog.map(|dataset| {
            let message = format!(
                "dataset {}: this node has no catalog of it yet, so it can't tell whose its files are",
                dataset.config.full_name()
            );
            Problem::new(Reason::WaitingForCatalog, message)
        });
        let total: u64 = datasets.iter().filter_map(|dataset| Some(dataset.holdings()?.tally().cached_bytes)).sum();
        {
            let mut progress = progress.lock();
            // The first round, or more has come since.
            if progress.total_bytes == 0 || progress.done {
                progress.remaining_bytes = total;
            }
            progress.total_bytes = progress.total_bytes.max(total);
        }
        let (send, receive) = mpsc::channel(1);
        let planner = tokio::spawn(Arc::clone(self).plan(datasets, send));
        let _planner = AbortOnDropHandle::new(planner);
        // What is with the others, counted as often as it is offered to one of them.
        let mut taken = HashMap::<u64, u64>::new();
        let mut results = ReceiverStream::new(receive)
            .map(|planned: Result<Offered, Problem>| async {
                let offered = planned?;
                let (held, problem) = self.offer(members, &offered).await;
                Ok::<_, Problem>((offered.heirs, held, problem))
            })
            .buffer_unordered(OFFERS);
        while let Some(result) = results.next().await {
            match result {
                Ok((heirs, held, complaint)) => {
                    *taken.entry(heirs).or_default() += held;
                    problem = problem.or(complaint);
                }
                Err(complaint) => problem = problem.or(Some(complaint)),
            }
            let taken: u64 = taken.iter().map(|(heirs, bytes)| bytes / heirs).sum();
            let mut progress = progress.lock();
            progress.remaining_bytes = progress.remaining_bytes.min(total.saturating_sub(taken));
        }
        problem
    }

    /// Goes through all that is held and makes offers of it.
    async fn plan(self: Arc<Self>, datasets: Vec<Arc<Dataset>>, offers: mpsc::Sender<Result<Offered, Problem>>) {
        for dataset in datasets {
            let Some(catalog) = dataset.catalog() else { continue };
            let mut open: HashMap<(MemberIndex, u64), Offer> = HashMap::new();
            let table = catalog.table();
            for begin in (0..table.len()).step_by(WINDOW) {
                tokio::task::yield_now().await;
                for row in begin..table.len().min(begin + WINDOW) {
                    let Some((id, size)) = table.get(row).map(|record| (record.id, record.size)) else { continue };
                    let held = self.store.with_presence(&id, Clone::clone);
                    let here = |chunk: &ChunkIndex| match &held {
                        Presence::Absent => false,
                        Presence::Complete => true,
                        Presence::Partial(chunks) => chunks.contains(*chunk),
                    };
                    for chunk in (0..chunk_count(size)).map(ChunkIndex).filter(here) {
                        let heirs = dataset.placement.heirs(&id, chunk);
                        if heirs.is_empty() {
                            let message = "no other member is to stay that could take what this node holds; add one, or let one stay";
                            let _ = offers.send(Err(Problem::new(Reason::NotOwner, message))).await;
                            return;
                        }
                        for heir in &heirs {
                            let key = (*heir, heirs.len() as u64);
                            let offer = open.entry(key).or_default();
                            offer.add(id, size, chunk);
                            if offer.bytes >= OFFER || offer.chunks.len() >= ITEMS {
                                let offer = std::mem::take(offer);
                                let offered =
                                    Offered { dataset: Arc::clone(&dataset), heir: key.0, heirs: key.1, offer };
                                if offers.send(Ok(offered)).await.is_err() {
                                    return;
                                }
                            }
                        }
                    }
                }
            }
            for ((heir, heirs), offer) in open {
                if offer.bytes > 0
                    && offers.send(Ok(Offered { dataset: Arc::clone(&dataset), heir, heirs, offer })).await.is_err()
                {
                    return;
                }
            }
        }
    }

    /// How many bytes of an offer the other one holds now, and why not all.
    async fn offer(&self, members: &Members, offered: &Offered) -> (u64, Option<Problem>) {
        let Offered { dataset, heir, offer, .. } = offered;
        let (Some(address), Some(me)) = (members.address(*heir), members.me().and_then(|me| members.id(me))) else {
            return (
                0,
                Some(Problem::new(Reason::NotOwner, "the members have changed; what is held is offered again")),
            );
        };
        let request =
            AdoptRequest { dataset_uid: dataset.uid().to_owned(), member: me.to_owned(), items: offer.items() };
        let asked = async {
            let mut client = self.fetcher.peers().client(address).map_err(|error| error.to_string())?;
            client.adopt(request).await.map_err(|status| status.message().to_owned())
        };
        let answer =
            tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                let held = offer.held(&answer.held);
                let why =
                    || answer.problem.as_ref().map_or_else(String::new, |problem| format!(": {}", problem.message));
                let problem = (held < offer.bytes).then(|| {
                    let message = format!(
                        "dataset {}: {address} has not taken {} of {} bytes{}",
                        dataset.config.full_name(),
                        offer.bytes - held,
                        offer.bytes,
                        why()
                    );
                    Problem::new(Reason::HandingOver, message)
                });
                (held, problem)
            }
            Err(error) => {
                let message =
                    format!("dataset {}: {address} takes nothing for now: {error}", dataset.config.full_name());
                (0, Some(Problem::new(Reason::PeerUnavailable, message)))
            }
        }
    }
}
