//! The Dataset of a manifest as the cache node is to serve it: validated, with its credentials, and with an identity of its own.

use std::collections::BTreeMap;

use anyhow::ensure;
use forebay_operator::dataset::{build::config_entry, validate::validate};
use forebay_protocol::config::{Credentials, DatasetConfig};

use super::credentials;
use super::manifest::Documents;

/// The entry of `runtime.yaml`. Sources in S3 that name no Secret get the credentials of the environment, if there are some.
pub fn configure(documents: &Documents, environment: Option<&Credentials>) -> anyhow::Result<DatasetConfig> {
    let Documents { dataset, secrets } = documents;
    let valid = validate(dataset)?;
    ensure!(!valid.name.is_empty(), "the Dataset has no metadata.name: give it one");
    let mut by_secret = BTreeMap::new();
    for name in valid.mounts.iter().filter_map(|mount| mount.secret.as_ref()) {
        by_secret.insert(name.clone(), credentials::from_secret(&valid.namespace, &valid.name, secrets, name)?);
    }
    let mut config = config_entry(&valid, &by_secret)?;
    for source in config.mounts.iter_mut().flat_map(|mount| &mut mount.sources) {
        if source.credentials.is_none() && source.url.starts_with("s3://") {
            source.credentials = environment.cloned();
        }
    }
    // Identity and version that a cluster gave it mean nothing here.
    config.uid = uid(&config);
    config.catalog = None;
    Ok(config)
}

/// The identity of a Dataset that no API server gave one: the same manifest finds its cache again, and one with other sources or other modes
/// is another Dataset. Looks like a UUID.
pub fn uid(dataset: &DatasetConfig) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part("forebay mount");
    part(&dataset.full_name());
    for mount in &dataset.mounts {
        part(&mount.path);
        for source in &mount.sources {
            part(&source.url);
            part(source.endpoint.as_deref().unwrap_or_default());
        }
    }
    let access = &dataset.access;
    part(&format!("{}:{} {:o} {:o}", access.uid, access.gid, access.file_mode, access.dir_mode));
    let hex = hasher.finalize().to_hex();
    let mut uid = String::with_capacity(36);
    for (index, digit) in hex.chars().take(32).enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            uid.push('-');
        }
        uid.push(digit);
    }
    uid
}

/// What the sources are called in messages: `s3://a/x/, file:///b/`.
pub fn sources(dataset: &DatasetConfig) -> String {
    let urls: Vec<&str> =
        dataset.mounts.iter().flat_map(|mount| &mount.sources).map(|source| source.url.as_str()).collect();
    urls.join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::manifest;
    use super::*;

    fn configured(text: &str) -> anyhow::Result<DatasetConfig> {
        let pair = Credentials { access_key_id: "env".into(), secret_access_key: "hidden".into(), session_token: None };
        configure(&manifest::parse(Path::new("-"), text)?, Some(&pair))
    }

    const DATASET: &str = "
apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {name: images}
spec:
  mounts:
  - {path: /a, sources: [{url: 's3://bucket/'}]}
  - {path: /b, sources: [{url: 'file:///mnt/b/'}]}
";

    #[test]
    fn the_environment_s_credentials_are_for_s3_sources_without_a_secret() {
        let config = configured(DATASET).unwrap();
        assert_eq!(config.full_name(), "default/images");
        let key_id =
            |index: usize| config.mounts[index].sources[0].credentials.as_ref().map(|it| it.access_key_id.clone());
        assert_eq!((key_id(0), key_id(1)), (Some("env".to_owned()), None));
        assert_eq!(sources(&config), "s3://bucket/, file:///mnt/b/");
        let named = DATASET.replace("'s3://bucket/'", "'s3://bucket/', secretRef: {name: cloud}");
        assert!(configured(&named).unwrap_err().to_string().contains("Secret default/cloud"));
    }

    #[test]
    fn the_identity_follows_from_name_sources_and_modes_only() {
        let first = configured(DATASET).unwrap();
        assert_eq!(first.uid.len(), 36);
        let same = configured(&DATASET.replace("spec:", "spec:\n  preload: {}")).unwrap();
        assert_eq!(first.uid, same.uid);
        for (from, to) in
            [("images", "other"), ("path: /a", "path: /c"), ("bucket", "pail"), ("spec:", "spec:\n  access: {uid: 7}")]
        {
            assert_ne!(configured(&DATASET.replace(from, to)).unwrap().uid, first.uid, "{to}");
        }
    }

    #[test]
    fn what_the_operator_would_refuse_is_refused() {
        let error = configured(&DATASET.replace("spec:", "spec:\n  preload: {priority: 5}")).unwrap_err().to_string();
        assert!(error.contains("spec.preload.priority is not supported yet"), "{error}");
        assert!(configured(&DATASET.replace("name: images", "")).is_err());
    }
}
