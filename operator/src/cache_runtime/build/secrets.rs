//! The configuration of a runtime's cache nodes and the Secrets that hold it and the runtime's identity.

use std::collections::BTreeMap;
use std::path::Path;

use forebay_crds::CacheRuntime;
use forebay_protocol::config::{DatasetConfig, Member, NodeConfig, RuntimeConfig, TlsFiles};
use forebay_protocol::layout::node_socket;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use super::super::validate::ValidRuntime;
use super::{HEALTH_PORT, NODE_PORT, metadata};
use crate::identity::RuntimeIdentity;
use crate::objects::typed;

/// The configuration's file in its Secret.
pub const CONFIG_FILE: &str = "runtime.yaml";

/// Name of the configuration's Secret.
pub fn config_name(runtime: &str) -> String {
    format!("{runtime}-config")
}

/// Name of the Secret with the runtime's CA.
pub fn identity_name(runtime: &str) -> String {
    format!("{runtime}-identity")
}

/// `runtime.yaml`, with a revision made of everything else in it.
pub fn config(
    runtime: &ValidRuntime,
    run_dir: &Path,
    members: Vec<Member>,
    datasets: Vec<DatasetConfig>,
    erase: bool,
) -> RuntimeConfig {
    let any = |port| std::net::SocketAddr::from(([0, 0, 0, 0], port));
    let mut config = RuntimeConfig {
        revision: String::new(),
        runtime: runtime.name.clone(),
        node: NodeConfig {
            cache_dir: runtime.cache_dir(),
            capacity_bytes: runtime.capacity_bytes,
            memory_tier: runtime.memory_tier(),
            memory_bytes: runtime.memory_bytes,
            listen: any(NODE_PORT),
            metrics: Some(any(HEALTH_PORT)),
            socket: Some(node_socket(run_dir, &runtime.name)),
        },
        tls: Some(TlsFiles { ca: "ca.crt".into(), cert: "tls.crt".into(), key: "tls.key".into() }),
        members,
        quotas: runtime.quotas.clone(),
        datasets,
        erase,
    };
    // Serialising our own types can't fail; if it did, the revision would only be less telling.
    let text = serde_json::to_vec(&config).unwrap_or_default();
    config.revision = blake3::hash(&text).to_hex().chars().take(16).collect();
    config
}

/// The Secret that the pods mount.
pub fn config_secret(
    owner: &CacheRuntime,
    runtime: &ValidRuntime,
    config: &RuntimeConfig,
    identity: &RuntimeIdentity,
) -> Result<Secret, serde_yaml::Error> {
    let [ca, cert, key] = identity.node_files();
    let mut secret: Secret = typed(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": metadata(owner, runtime, &config_name(&runtime.name.name)),
    }));
    let yaml = serde_yaml::to_string(config)?;
    let entry = |name: &str, text: &str| (name.to_owned(), k8s_openapi::ByteString(text.as_bytes().to_vec()));
    secret.data = Some(BTreeMap::from([
        entry(CONFIG_FILE, &yaml),
        entry("ca.crt", ca),
        entry("tls.crt", cert),
        entry("tls.key", key),
    ]));
    Ok(secret)
}

/// The configuration in a Secret that this operator or an earlier one wrote.
pub fn read_config(secret: &Secret) -> Option<RuntimeConfig> {
    let text = secret.data.as_ref()?.get(CONFIG_FILE)?;
    serde_yaml::from_slice(&text.0).ok()
}

/// The Secret with the runtime's CA.
pub fn identity_secret(owner: &CacheRuntime, runtime: &ValidRuntime, identity: &RuntimeIdentity) -> Secret {
    let mut secret: Secret = typed(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": metadata(owner, runtime, &identity_name(&runtime.name.name)),
    }));
    secret.data = Some(identity.to_data());
    secret
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::QuotaConfig;

    use super::super::super::validate::tests::{check, runtime};
    use super::*;

    #[test]
    fn the_revision_changes_with_the_content_and_the_secret_reads_back() {
        let owner = runtime("/var/lib/forebay");
        let valid = check(&owner).unwrap();
        let run_dir = Path::new("/var/lib/forebay/run");
        let one = config(&valid, run_dir, vec![], vec![], false);
        assert_eq!(one, config(&valid, run_dir, vec![], vec![], false));
        assert_ne!(one.revision, config(&valid, run_dir, vec![], vec![], true).revision);
        let mut other = valid.clone();
        other.memory_bytes = 1 << 30;
        other.quotas = vec![QuotaConfig { namespace: "training".into(), capacity_bytes: 1 << 40 }];
        let two = config(&other, run_dir, vec![], vec![], false);
        assert_eq!((two.node.memory_bytes, two.quotas.len()), (1 << 30, 1));
        assert_ne!(one.revision, two.revision);
        let identity = RuntimeIdentity::generate("forebay/pool", jiff::Timestamp::now()).unwrap();
        let secret = config_secret(&owner, &valid, &one, &identity).unwrap();
        assert_eq!(read_config(&secret), Some(one));
    }
}
