//! What there is to load, in the order in which it is loaded, which is the same on all nodes: chunks of large objects, and small objects in
//! groups that come from the same place. Looked up little by little, so that ten million files take no memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_protocol::config::PlacementMode;
use futures::{Stream, StreamExt, stream};

use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::placement::{MemberIndex, Placement};
use crate::fetch::turns::{Load, SMALL};
use crate::holdings::Holdings;
use crate::store::Store;
use crate::units::{ChunkIndex, chunk_count};

/// Rows of the catalog that are looked at between two looks at the rest of the world.
const WINDOW: usize = 1024;

/// Small objects of a group.
const GROUP: usize = 256;

/// A part of what is to be loaded that is gone through in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    /// Whose turns it takes.
    pub(super) load: Load,
    /// With [`Load::FromPeer`], who brings it.
    bringer: Option<MemberIndex>,
}

/// Something to load.
#[derive(Debug)]
pub(super) enum Work {
    /// A chunk of a large object.
    Chunk { object: Arc<CatalogObject>, path: Arc<Vec<u8>>, chunk: ChunkIndex },
    /// Small objects.
    Group(Group),
}

/// Small objects, of one chunk each, that the same member brings.
#[derive(Debug)]
pub(super) struct Group {
    /// The objects, with a path of each.
    pub(super) objects: Vec<(CatalogObject, Vec<u8>)>,
}

impl Lane {
    /// All lanes of a node, the first to be served first.
    pub(super) fn all(placement: &Placement) -> Vec<Self> {
        match placement.mode() {
            PlacementMode::Auto | PlacementMode::Sharded => vec![Self { load: Load::Own, bringer: None }],
            PlacementMode::Everywhere => {
                let others = placement.bringers_behind_me().into_iter();
                let others = others.map(|bringer| Self { load: Load::FromPeer, bringer: Some(bringer) });
                [Self { load: Load::Bring(placement.copies()), bringer: None }].into_iter().chain(others).collect()
            }
        }
    }

    fn holds(&self, placement: &Placement, object: &CatalogObject, chunk: ChunkIndex) -> bool {
        let id = &object.stored.id;
        match (self.load, self.bringer) {
            (Load::FromPeer, Some(bringer)) => {
                placement.bringer(id, chunk) == Some(bringer) && placement.keeps(id, chunk.stripe())
            }
            (Load::Bring(_), _) => placement.is_bringer(id, chunk) && placement.keeps(id, chunk.stripe()),
            _ => placement.keeps(id, chunk.stripe()),
        }
    }
}

/// What is missing of a lane.
pub(super) fn works(
    lane: Lane,
    dataset: Arc<Dataset>,
    holdings: Arc<Holdings>,
    store: Arc<Store>,
) -> impl Stream<Item = Work> {
    let rows = holdings.catalog.table().len();
    stream::iter((0..rows).step_by(WINDOW))
        .then(move |begin| {
            let (dataset, holdings, store) = (Arc::clone(&dataset), Arc::clone(&holdings), Arc::clone(&store));
            async move {
                tokio::task::yield_now().await;
                stream::iter(window(lane, &dataset, &holdings, &store, begin))
            }
        })
        .flatten()
}

fn window(lane: Lane, dataset: &Dataset, holdings: &Arc<Holdings>, store: &Store, begin: usize) -> Vec<Work> {
    let (table, placement) = (holdings.catalog.table(), &holdings.placement);
    let mut works = Vec::new();
    let mut groups: BTreeMap<Option<MemberIndex>, Vec<_>> = BTreeMap::new();
    for row in begin..table.len().min(begin + WINDOW) {
        let Some(record) = table.get(row) else { continue };
        let again = row.checked_sub(1).and_then(|row| table.get(row)).is_some_and(|before| before.id == record.id);
        if again || store.is_complete(&record.id) || !holdings.selects(&record) {
            continue;
        }
        let object = dataset.object_of(&record);
        if object.stored.size <= SMALL {
            if object.stored.size > 0 && lane.holds(placement, &object, ChunkIndex(0)) {
                let group = groups.entry(placement.bringer(&record.id, ChunkIndex(0))).or_default();
                group.push((object, record.tree_path()));
                if group.len() == GROUP {
                    works.push(Work::Group(Group { objects: std::mem::take(group) }));
                }
            }
            continue;
        }
        let (object, path) = (Arc::new(object), Arc::new(record.tree_path()));
        let chunks = (0..chunk_count(object.stored.size)).map(ChunkIndex);
        let mine = chunks.filter(|chunk| lane.holds(placement, &object, *chunk));
        let mine = mine.filter(|chunk| !store.has(&object.stored.id, *chunk));
        works.extend(mine.map(|chunk| Work::Chunk { object: Arc::clone(&object), path: Arc::clone(&path), chunk }));
    }
    let rest = groups.into_values().filter(|objects| !objects.is_empty());
    works.extend(rest.map(|objects| Work::Group(Group { objects })));
    works
}
