//! `runtime.yaml`: written by the operator or by hand.

use forebay_cache_node::source::location::Location;
use forebay_protocol::config::RuntimeConfig;

/// What is read and written again reads the same; its sources are taken apart or refused.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = serde_yaml::from_str::<RuntimeConfig>(text) else { return };
    for source in config.datasets.iter().flat_map(|dataset| &dataset.mounts).flat_map(|mount| &mount.sources) {
        if let Ok(Location::File { root }) = Location::parse(source) {
            assert!(root.is_absolute());
        }
    }
    let written = serde_yaml::to_string(&config).unwrap_or_else(|error| panic!("{config:?}: {error}"));
    let again = serde_yaml::from_str::<RuntimeConfig>(&written);
    assert!(again.as_ref().is_ok_and(|again| *again == config), "{config:?} became {again:?} by way of\n{written}");
}

/// A file with most of what one can have.
pub fn seeds() -> Vec<Vec<u8>> {
    let text = "
revision: r1
runtime: {namespace: forebay, name: pool}
node: {cacheDir: /tmp/cache, capacityBytes: 1000, memoryBytes: 5, listen: '127.0.0.2:7070', metrics: '127.0.0.2:7071', socket: /run/x.sock}
tls: {ca: ca.pem, cert: cert.pem, key: key.pem}
members:
- {address: '127.0.0.2:7070', weight: 2, zone: a, state: Leaving}
- {id: 0a, address: '[::1]:7070'}
quotas: [{namespace: training, capacityBytes: 7}]
datasets:
- uid: u1
  namespace: training
  name: images
  mounts: [{path: /, sources: [{url: 's3://b/p/', endpoint: 'http://h:1', region: r, credentials: {accessKeyId: me, secretAccessKey: s}}]}]
  access: {uid: 1, gid: 2, fileMode: 292, dirMode: 365}
  placement: {mode: Everywhere, replicas: 2}
  pin: {include: ['**/*.idx'], newerThanSeconds: 60}
  capacityBytes: 9
  preload: {include: ['a/**'], exclude: ['*.tmp']}
  catalog: '00112233445566778899aabbccddeeff'
";
    vec![
        text.into(),
        text.replace("s3://b/p/", "file:///a%20b/").into(),
        "runtime: {namespace: a, name: b}\nnode: {cacheDir: c, capacityBytes: 1, listen: '127.0.0.1:1'}\n".into(),
    ]
}
