//! The manifest file of `forebay mount`: one Dataset, and the Secrets that it names. What the API server and the operator would refuse is
//! refused here too, by the same rules.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use forebay_crds::{Dataset, Manifest};
use k8s_openapi::api::core::v1::Secret;

/// A manifest that is more than this is something else.
const MAX_BYTES: u64 = 4 << 20;

/// The file's documents.
#[derive(Debug)]
pub struct Documents {
    /// The one Dataset.
    pub dataset: Dataset,
    /// All Secrets.
    pub secrets: Vec<Secret>,
}

/// Reads the file, or standard input for `-`.
pub fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(MAX_BYTES).read_to_string(&mut text))
    };
    read.with_context(|| format!("reading {}", shown(file)))?;
    Ok(text)
}

/// Parses the file's text.
pub fn parse(file: &Path, text: &str) -> anyhow::Result<Documents> {
    let (mut datasets, mut secrets) = (Vec::new(), Vec::new());
    for manifest in forebay_crds::parse_manifests(text).with_context(|| shown(file))? {
        match manifest {
            Manifest::Dataset(dataset) => datasets.push(*dataset),
            Manifest::Secret(secret) => secrets.push(*secret),
            Manifest::CacheRuntime(_) => bail!(
                "{}: a CacheRuntime is not supported by `forebay mount` yet: --cache-dir and --capacity say what it would; take it out of the file",
                shown(file)
            ),
        }
    }
    match <[Dataset; 1]>::try_from(datasets) {
        Ok([dataset]) => Ok(Documents { dataset, secrets }),
        Err(datasets) => bail!("{}: {} Datasets found; a mount shows exactly one", shown(file), datasets.len()),
    }
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATASET: &str = "
apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {name: images}
spec: {mounts: [{path: /, sources: [{url: 's3://b/'}]}]}
---
";

    #[test]
    fn exactly_one_dataset_is_wanted() {
        let file = Path::new("-");
        assert!(parse(file, DATASET).unwrap().secrets.is_empty());
        assert!(parse(file, "").unwrap_err().to_string().contains("0 Datasets"));
        assert!(parse(file, &DATASET.repeat(2)).unwrap_err().to_string().contains("2 Datasets"));
    }

    #[test]
    fn a_cache_runtime_is_refused_by_name() {
        let runtime = "
apiVersion: forebay.dev/v1alpha1
kind: CacheRuntime
metadata: {name: pool}
spec: {nodes: {}, storage: {hostPath: {path: /var/lib/forebay/cache}, capacity: 1Gi}}
";
        let error = parse(Path::new("f.yaml"), &format!("{DATASET}{runtime}")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("CacheRuntime"), "{text}");
    }
}
