//! Nodes among themselves over mutual TLS.

use std::path::Path;
use std::time::Duration;

use forebay_cache_node::fetch::peers::{PeerAnswer, Peers};
use forebay_cache_node::memory::{LEAST, Shares};
use forebay_cache_node::store::{DatasetSlot, ObjectRef};
use forebay_cache_node::units::ChunkIndex;
use forebay_protocol::config::TlsFiles;
use forebay_protocol::node::{StatusRequest, node_client::NodeClient};
use forebay_protocol::tls::{Identity, NODE_DOMAIN};
use forebay_protocol::transfer::Reach;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::Endpoint;

use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, file_source, free_address, preload_all, scratch, wait_for};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self) -> (String, String, String) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![NODE_DOMAIN.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (self.0.pem(), cert.pem(), key.serialize_pem())
    }

    fn identity(&self) -> Identity {
        let (ca, cert, key) = self.issue();
        Identity::from_pem(ca, cert, key)
    }

    fn write(&self, folder: &Path) -> TlsFiles {
        let (ca, cert, key) = self.issue();
        for (name, text) in [("ca.pem", ca), ("cert.pem", cert), ("key.pem", key)] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        TlsFiles { ca: "ca.pem".into(), cert: "cert.pem".into(), key: "key.pem".into() }
    }
}

async fn answers(node: &NodeProcess, identity: Option<&Identity>) -> bool {
    let scheme = if identity.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", node.address())).unwrap();
    if let Some(identity) = identity {
        endpoint = endpoint.tls_config(identity.client()).unwrap();
    }
    let Ok(channel) = endpoint.connect().await else { return false };
    NodeClient::new(channel).status(StatusRequest {}).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_trust_only_their_own_authority_and_take_new_certificates_without_a_restart() {
    let source = scratch();
    for i in 0..20 {
        std::fs::write(source.path().join(format!("f{i}")), content(i, 10_000)).unwrap();
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let addresses = [free_address([127, 0, 0, 2]), free_address([127, 0, 0, 3])];
    let start = |address| {
        let (source, authority) = (source.path(), &authority);
        NodeProcess::start(move |folder| {
            let mut dataset = dataset("d", file_source(source));
            dataset.preload = Some(preload_all());
            let mut config = config(folder, address, &addresses, vec![dataset]);
            config.tls = Some(authority.write(folder));
            config
        })
    };
    let nodes = [start(addresses[0]).await, start(addresses[1]).await];
    assert!(answers(&nodes[0], Some(&authority.identity())).await);
    assert!(!answers(&nodes[0], None).await && !answers(&nodes[0], Some(&other.identity())).await);
    // What the other one owns comes over TLS.
    let all = |node: &NodeProcess| {
        let folder = node.config.node.cache_dir.join("catalogs/d");
        let socket = node.config.node.socket.clone().unwrap();
        async move {
            let catalog = wait_for("the catalog", Duration::from_secs(20), || async {
                let names = std::fs::read_dir(&folder).ok()?.filter_map(Result::ok);
                names.map(|entry| entry.path()).find(|path| !path.to_string_lossy().contains(".draft"))
            });
            let reader = crate::common::reader::Reader::connect(&socket, "d", &catalog.await).await;
            for (path, id) in reader.files() {
                let seed = path.trim_start_matches('f').parse().unwrap();
                assert!(reader.read(&id, 1000).await.unwrap() == content(seed, 10_000), "{path}");
            }
        }
    };
    all(&nodes[0]).await;
    assert_eq!(
        nodes[0].metric("forebay_source_read_bytes_total").await
            + nodes[1].metric("forebay_source_read_bytes_total").await,
        200_000
    );
    // A new authority: whoever has its certificates is in, the old ones are out.
    for node in &nodes {
        other.write(node.folder());
    }
    for node in &nodes {
        wait_for("the new certificates", Duration::from_secs(20), || async {
            answers(node, Some(&other.identity())).await.then_some(())
        })
        .await;
        assert!(!answers(node, Some(&authority.identity())).await);
    }
    all(&nodes[1]).await;
    assert_eq!(
        nodes[0].metric("forebay_source_read_bytes_total").await
            + nodes[1].metric("forebay_source_read_bytes_total").await,
        200_000
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_travel_under_tls_also_while_certificates_change_and_strangers_get_none() {
    let source = scratch();
    let bytes = content(1, 3 * (4 << 20) + 100);
    std::fs::write(source.path().join("f"), &bytes).unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let address = free_address([127, 0, 0, 2]);
    let node = NodeProcess::start(|folder| {
        let mut config = config(folder, address, &[], vec![dataset("d", file_source(source.path()))]);
        config.tls = Some(authority.write(folder));
        config
    })
    .await;
    let catalogs = node.config.node.cache_dir.join("catalogs/d");
    let id = wait_for("the catalog", Duration::from_secs(20), || async {
        let mut names = std::fs::read_dir(&catalogs).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let folder = names.find(|path| !path.to_string_lossy().contains(".draft"))?;
        let catalog = forebay_catalog::Catalog::open(&folder).ok()?;
        catalog.table().iter().next().map(|record| record.id)
    })
    .await;
    let object = ObjectRef { id, size: bytes.len() as u64, dataset: DatasetSlot(0) };
    let read = async |peers: &Peers, chunk: u32| {
        peers.read_chunk(address, "d", &object, ChunkIndex(chunk), Reach::Source).await
    };
    let buffers = Shares::of(LEAST).buffers;
    for stranger in [None, Some(other.identity())] {
        let answer = read(&Peers::new(stranger, buffers.clone()), 0).await;
        assert!(matches!(answer, PeerAnswer::Unavailable), "{answer:?}");
    }
    let peers = Peers::new(Some(authority.identity()), buffers);
    for round in 0..4 {
        authority.write(node.folder());
        let applied = || node.log().matches("config applied").count();
        let until = applied() + usize::from(round > 0);
        let mut chunk = 0;
        // Over and over, until the node has the new certificate.
        while applied() < until || chunk < 8 {
            let PeerAnswer::Chunk { bytes: got, .. } = read(&peers, chunk % 4).await else {
                panic!("round {round}, chunk {chunk}")
            };
            let begin = (chunk % 4) as usize * (4 << 20);
            assert!(got == bytes[begin..bytes.len().min(begin + (4 << 20))], "round {round}, chunk {chunk}");
            chunk += 1;
        }
    }
}
