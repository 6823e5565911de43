//! From a Dataset's spec to one that can't be wrong: everything that the API server's rules say, for programs without one, and the globs, which
//! its rules can't check.

use forebay_crds::{Dataset, PlacementMode, Source, VersionPolicy, parse_mode};
use forebay_protocol::config::{self, AccessConfig, PinConfig, PlacementConfig, PreloadConfig, RuntimeName};
use globset::GlobBuilder;

use crate::problem::Problem;

/// A Dataset that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidDataset {
    /// Its UID; empty when the manifest did not come from an API server.
    pub uid: String,
    /// Its namespace, `default` when the manifest says none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The runtime it refers to; none only in manifests that did not come from an API server.
    pub runtime: Option<RuntimeName>,
    /// The tree.
    pub mounts: Vec<ValidMount>,
    /// Owner and modes.
    pub access: AccessConfig,
    /// On which nodes content is kept.
    pub placement: PlacementConfig,
    /// What is evicted last.
    pub pin: Option<PinConfig>,
    /// At most this much of the pool.
    pub capacity_bytes: Option<u64>,
    /// What to load.
    pub preload: Option<PreloadConfig>,
    /// The version that has been published.
    pub catalog: Option<String>,
}

/// A folder of the tree and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidMount {
    /// Absolute and normalised.
    pub path: String,
    /// `s3://` or `file://`.
    pub url: String,
    /// `http://` or `https://`.
    pub endpoint: Option<String>,
    /// The store's region.
    pub region: Option<String>,
    /// Name of the Secret with the credentials.
    pub secret: Option<String>,
}

/// All that is wrong with a spec, as one problem of reason `InvalidSpec` or, when only unsupported fields are used, `NotSupported`.
pub fn validate(dataset: &Dataset) -> Result<ValidDataset, Problem> {
    let mut faults = Faults::default();
    let spec = &dataset.spec;
    let metadata = &dataset.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let runtime = spec.runtime_ref.as_ref().map(|runtime| RuntimeName {
        namespace: runtime.namespace.clone().unwrap_or_else(|| namespace.clone()),
        name: runtime.name.clone(),
    });

    if matches!(spec.version, Some(VersionPolicy::Follow(_))) {
        faults.unsupported("spec.version Follow");
    }
    let mounts = mounts(dataset, &mut faults);
    let placement = placement(dataset, &mut faults);
    let pin = pin(dataset, &mut faults);
    let preload = preload(dataset, &mut faults);
    let access = access(dataset, &mut faults);
    let capacity_bytes = spec.capacity.as_ref().and_then(|capacity| match capacity.value() {
        Ok(0) => faults.invalid("spec.capacity must be more than 0"),
        Ok(bytes) => Some(bytes),
        Err(error) => faults.invalid(format!("spec.capacity: {error}")),
    });
    faults.into_result(ValidDataset {
        uid: metadata.uid.clone().unwrap_or_default(),
        namespace,
        name: metadata.name.clone().unwrap_or_default(),
        runtime,
        mounts,
        access,
        placement,
        pin,
        capacity_bytes,
        preload,
        catalog: dataset.status.as_ref().and_then(|status| status.version.as_ref()).map(|version| version.id.clone()),
    })
}

#[derive(Default)]
struct Faults {
    invalid: Vec<String>,
    unsupported: Vec<String>,
}

impl Faults {
    fn invalid<T>(&mut self, message: impl Into<String>) -> Option<T> {
        self.invalid.push(message.into());
        None
    }

    fn unsupported(&mut self, field: &str) {
        self.unsupported.push(format!("{field} is not supported yet: leave it out"));
    }

    fn into_result<T>(mut self, value: T) -> Result<T, Problem> {
        let reason = if self.invalid.is_empty() { "NotSupported" } else { "InvalidSpec" };
        self.invalid.append(&mut self.unsupported);
        if self.invalid.is_empty() { Ok(value) } else { Err(Problem::new(reason, self.invalid.join("; "))) }
    }
}

fn mounts(dataset: &Dataset, faults: &mut Faults) -> Vec<ValidMount> {
    let mounts = &dataset.spec.mounts;
    if mounts.is_empty() {
        faults.invalid.push("spec.mounts must have at least one mount".to_owned());
    }
    let mut valid: Vec<ValidMount> = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("spec.mounts[{index}]");
        if mount.path != "/" && !normalised(&mount.path) {
            faults.invalid.push(format!(
                "{field}.path {:?} must be absolute and normalised, as in / or /images: no empty part, no . or .., no / at the end",
                mount.path
            ));
        }
        if valid.iter().any(|other| other.path == mount.path) {
            faults
                .invalid
                .push(format!("{field}.path {:?} is there twice: give each mount a path of its own", mount.path));
        }
        match mount.sources.as_slice() {
            [source] => valid.push(source_of(&mount.path, source, &format!("{field}.sources[0]"), faults)),
            [] => faults.invalid.push(format!("{field}.sources must have a source")),
            _ => faults.unsupported(&format!("{field}.sources with more than one source")),
        }
    }
    valid
}

fn source_of(path: &str, source: &Source, field: &str, faults: &mut Faults) -> ValidMount {
    if source.link.is_some() {
        faults.unsupported(&format!("{field}.link"));
    }
    if let Some(rest) = source.url.strip_prefix("s3://") {
        let bucket = rest.split('/').next().unwrap_or_default();
        let letters = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let good =
            bucket.len() >= 2 && bucket.chars().all(letters) && bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !good || rest.chars().any(char::is_control) {
            faults.invalid.push(format!("{field}.url {:?} must be s3://BUCKET or s3://BUCKET/PREFIX/", source.url));
        }
    } else if let Some(folder) = source.url.strip_prefix("file://") {
        if folder != "/" && !normalised(folder.strip_suffix('/').unwrap_or(folder)) {
            faults.invalid.push(format!(
                "{field}.url {:?} must be file:// and an absolute, normalised path, as in file:///mnt/data/",
                source.url
            ));
        }
        if source.endpoint.is_some() || source.region.is_some() || source.secret_ref.is_some() {
            faults.invalid.push(format!("{field}: a file:// source takes no endpoint, region or secretRef"));
        }
    } else if ["gs://", "az://", "hdfs://", "https://"].iter().any(|scheme| source.url.starts_with(scheme)) {
        faults.unsupported.push(format!(
            "{field}.url {:?} is of a scheme that is not supported yet: use s3:// or file://",
            source.url
        ));
    } else {
        faults.invalid.push(format!("{field}.url {:?} must begin with s3:// or file://", source.url));
    }
    if source.endpoint.as_deref().is_some_and(|endpoint| !good_endpoint(endpoint)) {
        faults.invalid.push(format!(
            "{field}.endpoint must be an http:// or https:// URL of a host, as in https://s3.example.com: no user, query or fragment"
        ));
    }
    ValidMount {
        path: path.to_owned(),
        url: source.url.clone(),
        endpoint: source.endpoint.clone(),
        region: source.region.clone(),
        secret: source.secret_ref.as_ref().map(|secret| secret.name.clone()),
    }
}

/// `/a/b`: parts that are neither empty nor dots, no control characters.
fn normalised(path: &str) -> bool {
    let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control);
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(good))
}

fn good_endpoint(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://")) else {
        return false;
    };
    let host = rest.split('/').next().unwrap_or_default();
    !host.is_empty() && !host.contains('@') && !rest.contains(['?', '#']) && !rest.contains(char::is_whitespace)
}

fn preload(dataset: &Dataset, faults: &mut Faults) -> Option<PreloadConfig> {
    let preload = dataset.spec.preload.as_ref()?;
    for (field, present) in [
        ("newerThan", preload.newer_than.is_some()),
        ("schedule", preload.schedule.is_some()),
        ("priority", preload.priority.is_some()),
    ] {
        if present {
            faults.unsupported(&format!("spec.preload.{field}"));
        }
    }
    globs("spec.preload.include", &preload.include, faults);
    globs("spec.preload.exclude", &preload.exclude, faults);
    Some(PreloadConfig { include: preload.include.clone(), exclude: preload.exclude.clone() })
}

fn globs(field: &str, globs: &[String], faults: &mut Faults) {
    for (index, glob) in globs.iter().enumerate() {
        if let Err(error) = GlobBuilder::new(glob).literal_separator(true).build() {
            faults.invalid.push(format!("{field}[{index}]: {error}"));
        }
        if glob.starts_with('/') {
            faults.invalid.push(format!("{field}[{index}] {glob:?} never matches: globs are without the leading /"));
        }
    }
}

fn placement(dataset: &Dataset, faults: &mut Faults) -> PlacementConfig {
    let spec = dataset.spec.placement.clone().unwrap_or_default();
    let mode = match spec.mode.unwrap_or_default() {
        PlacementMode::Auto => config::PlacementMode::Auto,
        PlacementMode::Sharded => config::PlacementMode::Sharded,
        PlacementMode::Everywhere => config::PlacementMode::Everywhere,
    };
    if mode == config::PlacementMode::Everywhere && spec.replicas.is_some() {
        faults.invalid.push(
            "spec.placement.replicas contradicts mode Everywhere, which keeps everything on every node: leave replicas out, or use mode Auto or \
             Sharded"
                .to_owned(),
        );
    }
    let replicas = spec.replicas.map_or(Some(PlacementConfig::default().replicas), |replicas| {
        u32::try_from(replicas).ok().filter(|replicas| (1..=16).contains(replicas))
    });
    if replicas.is_none() {
        faults.invalid.push("spec.placement.replicas must be between 1 and 16".to_owned());
    }
    PlacementConfig { mode, replicas: replicas.unwrap_or_default() }
}

fn pin(dataset: &Dataset, faults: &mut Faults) -> Option<PinConfig> {
    let pin = dataset.spec.pin.as_ref()?;
    globs("spec.pin.include", &pin.include, faults);
    let newer_than_seconds = pin.newer_than.as_ref().and_then(|age| match age.value() {
        Ok(age) if age.as_secs() == 0 => faults.invalid("spec.pin.newerThan must be at least 1s"),
        Ok(age) => Some(age.as_secs()),
        Err(error) => faults.invalid(format!("spec.pin.newerThan: {error}")),
    });
    Some(PinConfig { include: pin.include.clone(), newer_than_seconds })
}

fn access(dataset: &Dataset, faults: &mut Faults) -> AccessConfig {
    let default = AccessConfig::default();
    let Some(access) = &dataset.spec.access else { return default };
    let mut mode = |field: &str, text: Option<&String>, default: u32| match text.map(|text| parse_mode(text)) {
        None => default,
        Some(Ok(mode)) => mode,
        Some(Err(error)) => {
            faults.invalid.push(format!("spec.access.{field}: {error}"));
            default
        }
    };
    AccessConfig {
        file_mode: mode("fileMode", access.file_mode.as_ref(), default.file_mode),
        dir_mode: mode("dirMode", access.dir_mode.as_ref(), default.dir_mode),
        uid: access.uid.unwrap_or(default.uid),
        gid: access.gid.unwrap_or(default.gid),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn dataset(change: impl FnOnce(&mut Value)) -> Dataset {
        let mut value = json!({
            "apiVersion": "forebay.dev/v1alpha1", "kind": "Dataset",
            "metadata": {"name": "images", "namespace": "training", "uid": "u1", "generation": 3},
            "spec": {
                "runtimeRef": {"name": "pool", "namespace": "forebay"},
                "mounts": [{"path": "/images", "sources": [
                    {"url": "s3://notes/2026/", "endpoint": "http://198.18.0.1:7480", "region": "r1", "secretRef": {"name": "cloud"}},
                ]}],
            },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn problem(change: impl FnOnce(&mut Value)) -> Problem {
        validate(&dataset(change)).unwrap_err()
    }

    #[test]
    fn a_dataset_of_what_is_supported_is_valid() {
        let valid = validate(&dataset(|value| {
            value["spec"]["capacity"] = json!("500Gi");
            value["spec"]["access"] = json!({"uid": 1000, "fileMode": "0440"});
            value["spec"]["preload"] = json!({"include": ["**/*.jpg"]});
            value["status"] = json!({"version": {"id": "abc", "files": 1, "size": "1", "bytes": 1}});
        }))
        .unwrap();
        assert_eq!(valid.runtime, Some(RuntimeName { namespace: "forebay".into(), name: "pool".into() }));
        assert_eq!(valid.capacity_bytes, Some(500 << 30));
        assert_eq!((valid.access.uid, valid.access.file_mode, valid.access.dir_mode), (1000, 0o440, 0o555));
        assert_eq!(valid.catalog.as_deref(), Some("abc"));
        assert_eq!(valid.mounts[0].secret.as_deref(), Some("cloud"));
    }

    #[test]
    fn placement_and_pin_become_those_of_the_configuration() {
        let plain = validate(&dataset(|_| {})).unwrap();
        assert_eq!((plain.placement, plain.pin), (PlacementConfig::default(), None));
        let with = |placement: Value, pin: Value| {
            validate(&dataset(|value| {
                value["spec"]["placement"] = placement;
                value["spec"]["pin"] = pin;
            }))
            .unwrap()
        };
        let valid = with(json!({"mode": "Sharded", "replicas": 3}), json!({"include": ["a/**"], "newerThan": "168h"}));
        assert_eq!(valid.placement, PlacementConfig { mode: config::PlacementMode::Sharded, replicas: 3 });
        let pin = PinConfig { include: vec!["a/**".into()], newer_than_seconds: Some(604_800) };
        assert_eq!(valid.pin, Some(pin));
        let valid = with(json!({"mode": "Everywhere"}), json!({}));
        assert_eq!(valid.placement.mode, config::PlacementMode::Everywhere);
        assert_eq!(valid.pin, Some(PinConfig::default()), "all files");
    }

    #[test]
    fn the_runtime_is_in_the_dataset_s_namespace_unless_said_otherwise() {
        let valid = validate(&dataset(|value| value["spec"]["runtimeRef"] = json!({"name": "pool"}))).unwrap();
        assert_eq!(valid.runtime.unwrap().namespace, "training");
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_by_name_and_never_ignored() {
        for (pointer, value, field) in [
            ("/spec/version", json!({"Follow": {"interval": "10m"}}), "spec.version"),
            ("/spec/preload", json!({"newerThan": "1h"}), "spec.preload.newerThan"),
            ("/spec/preload", json!({"schedule": "0 3 * * *"}), "spec.preload.schedule"),
            ("/spec/preload", json!({"priority": 50}), "spec.preload.priority"),
            ("/spec/mounts/0/sources/0/link", json!("line-a"), "sources[0].link"),
            ("/spec/mounts/0/sources/0/url", json!("gs://bucket/"), "sources[0].url"),
            (
                "/spec/mounts/0/sources",
                json!([{"url": "s3://aa"}, {"url": "s3://bb"}]),
                "sources with more than one source",
            ),
        ] {
            let problem = problem(|dataset| {
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                match dataset.pointer_mut(parent).unwrap() {
                    Value::Object(object) => drop(object.insert(name.to_owned(), value)),
                    _ => unreachable!(),
                }
            });
            assert_eq!(problem.reason, "NotSupported", "{pointer}");
            assert!(
                problem.message.contains(field) && problem.message.contains("is not supported yet"),
                "{pointer}: {problem}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        for (pointer, value, message) in [
            ("/spec/mounts", json!([]), "spec.mounts"),
            ("/spec/mounts/0/path", json!("images"), "absolute and normalised"),
            ("/spec/mounts/0/path", json!("/a/../b"), "absolute and normalised"),
            ("/spec/mounts/0/path", json!("/a/"), "absolute and normalised"),
            ("/spec/mounts/0/sources/0/url", json!("s3://"), "s3://BUCKET"),
            ("/spec/mounts/0/sources/0/url", json!("ftp://host"), "must begin with s3:// or file://"),
            ("/spec/mounts/0/sources/0/url", json!("file:///mnt"), "takes no endpoint"),
            ("/spec/mounts/0/sources/0/endpoint", json!("s3.example.com"), "endpoint must be"),
            ("/spec/capacity", json!("lots"), "spec.capacity"),
            ("/spec/access", json!({"fileMode": "rw"}), "spec.access.fileMode"),
            ("/spec/preload", json!({"include": ["a[b"]}), "spec.preload.include[0]"),
            ("/spec/preload", json!({"exclude": ["/a"]}), "without the leading /"),
            ("/spec/pin", json!({"include": ["a[b"]}), "spec.pin.include[0]"),
            ("/spec/pin", json!({"include": ["/a"]}), "without the leading /"),
            ("/spec/pin", json!({"newerThan": "a week"}), "spec.pin.newerThan"),
            ("/spec/pin", json!({"newerThan": "10ms"}), "at least 1s"),
            ("/spec/placement", json!({"mode": "Everywhere", "replicas": 2}), "contradicts mode Everywhere"),
            ("/spec/placement", json!({"replicas": 0}), "between 1 and 16"),
            ("/spec/placement", json!({"replicas": -1}), "between 1 and 16"),
        ] {
            let problem = problem(|dataset| match dataset.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => dataset["spec"][pointer.rsplit_once('/').unwrap().1] = value,
            });
            assert_eq!(problem.reason, "InvalidSpec", "{pointer}");
            assert!(problem.message.contains(message), "{pointer}: {problem}");
        }
    }

    #[test]
    fn two_mounts_can_not_have_one_path() {
        let problem = problem(|dataset| {
            let mount = dataset["spec"]["mounts"][0].clone();
            dataset["spec"]["mounts"] = json!([mount, mount]);
        });
        assert!(problem.message.contains("there twice"), "{problem}");
    }
}
