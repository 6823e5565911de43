//! What of the pool's limits falls to this node, what goes first when they are reached, and whether limits and pins of a config can be used.

use std::collections::HashSet;
use std::sync::Arc;

use forebay_catalog::ObjectId;
use forebay_protocol::config::RuntimeConfig;

use super::{Datasets, Engine, Running};
use crate::dataset::Dataset;
use crate::fetch::placement::Members;
use crate::pins::Pins;
use crate::problem::{Problem, Reason};
use crate::store::{Class, DatasetSlot, Quota};

/// This node's part of so many bytes of the whole pool: by its share of the weights. A node that owns nothing caches only for itself, up to all of it.
pub(super) fn part_of(bytes: u64, members: &Members) -> u64 {
    let share = members.my_share();
    if share > 0.0 { (bytes as f64 * share) as u64 } else { bytes }
}

/// This node's part of the namespaces' quotas. `slot` gives a dataset's number by its uid.
pub(super) fn quotas(
    config: &RuntimeConfig,
    members: &Members,
    slot: impl Fn(&str) -> Option<DatasetSlot>,
) -> Vec<Quota> {
    let quotas = config.quotas.iter().map(|quota| {
        let datasets = config.datasets.iter().filter(|dataset| dataset.namespace == quota.namespace);
        let datasets: HashSet<_> = datasets.filter_map(|dataset| slot(&dataset.uid)).collect();
        Quota { datasets: Arc::new(datasets), bytes: part_of(quota.capacity_bytes, members) }
    });
    quotas.collect()
}

/// Refuses patterns that are none, and two quotas of one namespace.
pub(super) fn check(config: &RuntimeConfig) -> Result<(), Problem> {
    for dataset in &config.datasets {
        if let Some(Err(error)) = dataset.pin.as_ref().map(Pins::new) {
            let pattern = error.glob().unwrap_or_default();
            let message = format!(
                "dataset {}: pin: {pattern:?} is no glob: {}; mend the pattern",
                dataset.full_name(),
                error.kind()
            );
            return Err(Problem::new(Reason::InvalidSource, message));
        }
    }
    let mut seen = HashSet::new();
    match config.quotas.iter().find(|quota| !seen.insert(quota.namespace.as_str())) {
        Some(twice) => Err(Problem::new(
            Reason::InvalidSource,
            format!("namespace {} has more than one quota; leave one", twice.namespace),
        )),
        None => Ok(()),
    }
}

impl Engine {
    /// Tells the store what goes first, and what the node and the namespaces may have.
    pub(super) fn set_limits(&self, config: &RuntimeConfig, members: &Arc<Members>) {
        let wanted = |dataset: &Arc<Dataset>| config.datasets.iter().any(|config| config.uid == dataset.uid());
        let datasets: Vec<_> = self.all_datasets().into_iter().filter(wanted).collect();
        self.pins.set(&datasets);
        let (running, pins) = (Arc::clone(&self.datasets), Arc::clone(&self.pins));
        self.store.set_classes(Arc::new(move |id| {
            if pins.have(id) {
                Class::Pinned
            } else if keeps(&running, id) {
                Class::Owned
            } else {
                Class::Copy
            }
        }));
        let slot = |uid: &str| datasets.iter().find(|dataset| dataset.uid() == uid).map(|dataset| dataset.slot);
        self.store.set_quotas(&quotas(config, members, slot));
        // Last: what is too much goes in the order of the classes.
        self.store.set_capacity(config.node.capacity_bytes);
        if let Some(tier) = &config.node.memory_tier {
            self.store.set_memory_capacity(tier.capacity_bytes);
        }
    }
}

/// Whether this node is to keep an object, for any dataset that has it. Of what no catalog tells anything, it is.
fn keeps(datasets: &Datasets, id: &ObjectId) -> bool {
    let datasets = datasets.read();
    let mut known = false;
    for Running { dataset, .. } in datasets.values() {
        let Some(catalog) = dataset.catalog() else { return true };
        if let Some(record) = catalog.table().find(id) {
            known = true;
            if dataset.placement.keeps_any(id, record.size) {
                return true;
            }
        }
    }
    !known
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::{DatasetConfig, Member, PinConfig, QuotaConfig};

    use super::*;

    fn config() -> RuntimeConfig {
        let text = "
runtime: {namespace: forebay, name: pool}
node: {cacheDir: /tmp/cache, capacityBytes: 1000, listen: '127.0.0.2:7070'}
members: [{address: '127.0.0.2:7070', weight: 1}, {address: '127.0.0.3:7070', weight: 3}, {address: '127.0.0.4:7070', weight: 0}]
quotas: [{namespace: a, capacityBytes: 4000}, {namespace: empty, capacityBytes: 7}]
datasets:
- {uid: a1, namespace: a, name: one, mounts: []}
- {uid: b1, namespace: b, name: one, mounts: []}
- {uid: a2, namespace: a, name: two, mounts: []}
";
        serde_yaml::from_str(text).unwrap()
    }

    fn slot(uid: &str) -> Option<DatasetSlot> {
        ["b1", "a1", "a2"].iter().position(|known| *known == uid).map(|n| DatasetSlot(n as u32))
    }

    #[test]
    fn a_quota_is_for_all_datasets_of_the_namespace_and_falls_to_the_nodes_by_weight() {
        let config = config();
        let bytes = |member: Option<&Member>| {
            let addresses: Vec<_> = member.iter().map(|member| member.address).collect();
            let members = Members::new(&config.members, "", &addresses);
            let quotas = quotas(&config, &members, slot);
            assert_eq!(*quotas[0].datasets, HashSet::from([DatasetSlot(1), DatasetSlot(2)]));
            assert!(quotas[1].datasets.is_empty());
            quotas[0].bytes
        };
        let parts: Vec<_> = config.members.iter().map(|member| bytes(Some(member))).collect();
        assert_eq!(parts, [1000, 3000, 4000], "the last owns nothing, and keeps copies only");
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        let mut config = config();
        assert!(check(&config).is_ok());
        let pin = |glob: &str| {
            Some(PinConfig { include: vec!["ok/*".to_owned(), glob.to_owned()], newer_than_seconds: None })
        };
        config.datasets[1] = DatasetConfig { pin: pin("models/[a"), ..config.datasets[1].clone() };
        let problem = check(&config).unwrap_err().to_string();
        assert!(problem.contains("b/one") && problem.contains("models/[a"), "{problem}");
        config.datasets[1].pin = pin("models/a*");
        assert!(check(&config).is_ok());
        config.quotas.push(QuotaConfig { namespace: "a".to_owned(), capacity_bytes: 1 });
        assert!(check(&config).unwrap_err().to_string().contains("namespace a"));
    }
}
