//! Where a dataset's catalog comes from: this node's disk, another member, or a listing of the sources by the member that is first for the
//! dataset. A catalog once made stays: who is to list asks the others first.

mod folder;
mod listing;
pub mod transfer;

use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::Catalog;
use tokio::time::Instant;

pub use folder::CatalogFolders;

use crate::dataset::Dataset;
use crate::fetch::peers::Peers;
use crate::fetch::placement::Members;
use crate::problem::{Problem, Reason};

/// Between two rounds of asking the others.
const POLL: Duration = Duration::from_secs(1);

/// Between two attempts to list, doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// When all members that come before this one have been out of reach for so long, this one lists.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is needed to get a catalog.
#[derive(Debug)]
pub struct Keeper {
    /// The catalogs on this node's disk.
    pub folders: CatalogFolders,
    /// Who is to list.
    pub members: Arc<Members>,
}

impl Keeper {
    /// Gets the dataset's catalog, however long it takes. What stands in the way meanwhile is told to the dataset.
    pub async fn obtain(&self, dataset: &Arc<Dataset>, peers: &Peers) -> Arc<Catalog> {
        let began = Instant::now();
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(catalog) = self.ask_others(dataset, peers).await {
                return catalog;
            }
            let before_me = self.members.before_me_for_catalog(dataset.uid());
            if before_me.is_empty()
                || began.elapsed() > PATIENCE && !any_answers(&before_me, &self.members, peers).await
            {
                match self.list(dataset).await {
                    Ok(catalog) => return catalog,
                    Err(problem) => dataset.set_catalog_problem(problem),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            } else {
                let first = before_me.first().and_then(|first| self.members.address(*first));
                let first = first.map_or_else(String::new, |address| format!(" ({address})"));
                let message = format!("another cache node{first} makes the catalog; it is not there yet");
                dataset.set_catalog_problem(Problem::new(Reason::WaitingForCatalog, message));
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// A catalog that another member has already, if it is one that this dataset accepts.
    async fn ask_others(&self, dataset: &Dataset, peers: &Peers) -> Option<Arc<Catalog>> {
        let asked = self.members.others().filter_map(|member| self.members.address(member));
        let asked = asked.map(|address| transfer::receive(peers, address, dataset, &self.folders));
        // All at once: most answer at once that they have none. The first good one wins.
        let mut answers: futures::stream::FuturesUnordered<_> = asked.collect();
        while let Some(answer) = futures::StreamExt::next(&mut answers).await {
            match answer {
                Ok(Some(catalog)) => return Some(catalog),
                Ok(None) => {}
                Err(error) => tracing::debug!(dataset = dataset.config.full_name(), %error, "no catalog from a peer"),
            }
        }
        None
    }

    async fn list(&self, dataset: &Arc<Dataset>) -> Result<Arc<Catalog>, Problem> {
        let began = Instant::now();
        let draft = self.folders.draft(dataset.uid()).map_err(|error| {
            Problem::new(
                Reason::StoreFailed,
                format!("making a folder for the catalog: {error}; check the cache's disk"),
            )
        })?;
        let catalog = listing::list(dataset, &draft).await?;
        // One that is not accepted is not kept, so that the next listing starts afresh.
        dataset.accepts(&catalog)?;
        let catalog = self.folders.publish(dataset.uid(), draft, catalog.id()).map_err(|error| {
            Problem::new(Reason::StoreFailed, format!("keeping the catalog: {error}; check the cache's disk"))
        })?;
        let summary = catalog.summary();
        tracing::info!(
            dataset = dataset.config.full_name(),
            catalog = %summary.id,
            files = summary.files,
            bytes = summary.bytes,
            skipped = summary.skipped,
            seconds = began.elapsed().as_secs_f32(),
            "listed"
        );
        Ok(catalog)
    }
}

async fn any_answers(members: &[crate::fetch::placement::MemberIndex], all: &Members, peers: &Peers) -> bool {
    let asked = members.iter().filter_map(|member| all.address(*member)).map(|address| async move {
        let Ok(mut client) = peers.client(address) else { return false };
        let status = client.status(forebay_protocol::node::StatusRequest {});
        matches!(tokio::time::timeout(Duration::from_secs(2), status).await, Ok(Ok(_)))
    });
    futures::future::join_all(asked).await.contains(&true)
}
