//! Container images without a registry and without a build tool: a root file system, as a tar, becomes an archive in OCI
//! layout that containerd imports. Archives lie in `target/e2e/images` and are made anew only when what is in them changes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::paths;
use crate::setup::hex;

/// The image that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/library/forebay-pause:dev";

/// What an image is called and how it starts.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// The name as a pod spec says it, such as `forebay:dev`.
    pub name: String,
    /// The command run when the pod names none.
    pub entrypoint: Vec<String>,
    /// The environment, as `NAME=value`.
    pub environment: Vec<String>,
}

/// A file of an image: its path in there and the file it is copied from.
pub type ImageFile = (String, PathBuf);

/// Makes the archive of an image from static programs; returns its path.
pub fn from_programs(config: &ImageConfig, programs: &[ImageFile]) -> Result<PathBuf> {
    let mut inputs = Sha256::new();
    inputs.update(format!("{config:?}"));
    for (path, source) in programs {
        inputs.update(path);
        inputs.update(
            fs::read(source).with_context(|| format!("reading {} for image {}", source.display(), config.name))?,
        );
    }
    cached(config, &hex(&inputs.finalize()), |layer| {
        let mut tar = tar::Builder::new(layer);
        for folder in ["etc/", "tmp/", "run/", "var/", "var/lib/"] {
            append_folder(&mut tar, folder, if folder == "tmp/" { 0o1777 } else { 0o755 })?;
        }
        append_bytes(&mut tar, "etc/passwd", b"root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n", 0o644)?;
        append_bytes(&mut tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
        for (path, source) in programs {
            let content = fs::read(source)?;
            append_bytes(&mut tar, path.trim_start_matches('/'), &content, 0o755)?;
        }
        tar.finish().context("writing the layer")
    })
}

/// The pause image.
pub fn pause() -> Result<PathBuf> {
    let config =
        ImageConfig { name: "forebay-pause:dev".into(), entrypoint: vec!["/pause".into()], ..ImageConfig::default() };
    from_programs(&config, &[("/pause".into(), paths::bin().join("pause"))])
}

/// Makes an archive from a layer that `write_layer` writes, unless there is one made from the same `inputs`.
pub fn cached(
    config: &ImageConfig,
    inputs: &str,
    write_layer: impl FnOnce(&mut File) -> Result<()>,
) -> Result<PathBuf> {
    let folder = paths::images();
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let base = config.name.replace([':', '/'], "-");
    let (archive, stamp) = (folder.join(format!("{base}.tar")), folder.join(format!("{base}.stamp")));
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == inputs) {
        return Ok(archive);
    }
    let layer = folder.join(format!("{base}.layer"));
    let mut file = File::create(&layer)?;
    write_layer(&mut file).with_context(|| format!("making the layer of image {}", config.name))?;
    drop(file);
    write_archive(config, &layer, &archive).with_context(|| format!("writing {}", archive.display()))?;
    fs::remove_file(&layer)?;
    fs::write(&stamp, inputs)?;
    Ok(archive)
}

/// The name as containerd keeps it.
pub fn full_name(name: &str) -> Result<String> {
    if name.rsplit('/').next().is_none_or(|last| !last.contains(':')) {
        bail!("image name {name:?} has no tag");
    }
    Ok(match name.split_once('/') {
        Some((registry, _)) if registry.contains(['.', ':']) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    })
}

fn write_archive(config: &ImageConfig, layer: &Path, archive: &Path) -> Result<()> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(layer)?, &mut hash)?;
    let layer_digest = hex(&hash.finalize());
    let layer_size = fs::metadata(layer)?.len();
    let image = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": config.entrypoint, "Env": config.environment, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    });
    let (image_blob, image_descriptor) = blob(&image, "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": image_descriptor,
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{layer_digest}"), "size": layer_size}],
    });
    let (manifest_blob, mut manifest_descriptor) = blob(&manifest, "application/vnd.oci.image.manifest.v1+json");
    manifest_descriptor["annotations"] = json!({"io.containerd.image.name": full_name(&config.name)?});
    manifest_descriptor["platform"] = json!({"architecture": architecture(), "os": "linux"});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest_descriptor],
    });

    let partial = archive.with_extension("partial");
    let mut tar = tar::Builder::new(File::create(&partial)?);
    append_bytes(&mut tar, "oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#, 0o644)?;
    append_bytes(&mut tar, "index.json", index.to_string().as_bytes(), 0o644)?;
    for (digest, content) in [image_blob, manifest_blob] {
        append_bytes(&mut tar, &format!("blobs/sha256/{digest}"), &content, 0o644)?;
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(layer_size);
    header.set_mode(0o644);
    tar.append_data(&mut header, format!("blobs/sha256/{layer_digest}"), File::open(layer)?)?;
    tar.into_inner()?.flush()?;
    Ok(fs::rename(&partial, archive)?)
}

/// A JSON document as a blob (digest and bytes) and the descriptor that refers to it.
fn blob(document: &Value, media_type: &str) -> ((String, Vec<u8>), Value) {
    let content = document.to_string().into_bytes();
    let digest = hex(&Sha256::digest(&content));
    let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()});
    ((digest, content), descriptor)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn append_folder(tar: &mut tar::Builder<impl std::io::Write>, path: &str, mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(mode);
    Ok(tar.append_data(&mut header, path, std::io::empty())?)
}

fn append_bytes(tar: &mut tar::Builder<impl std::io::Write>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    Ok(tar.append_data(&mut header, path, content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_a_container_runtime_does() {
        assert_eq!(full_name("forebay:dev").unwrap(), "docker.io/library/forebay:dev");
        assert_eq!(full_name("me/forebay:dev").unwrap(), "docker.io/me/forebay:dev");
        assert_eq!(full_name("localhost:5000/forebay:dev").unwrap(), "localhost:5000/forebay:dev");
        assert!(full_name("forebay").is_err());
    }
}
