//! `cargo xtask demo`: the main job, on show. A two-node cluster and an S3 server with real data come up, Forebay is installed as a user would,
//! the example Datasets are loaded, and a training job reads them on both nodes.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use forebay_e2e::command::{run_shown, run_with_input};
use forebay_e2e::{Cluster, Options, S3Server, data, debian, forebay, paths, wait_until};

/// Namespace of the example Datasets and of the training job.
const NAMESPACE: &str = "training";

/// The example Datasets.
const DATASETS: [&str; 2] = ["icons", "minilm"];

/// How often the job reads the images; `EPOCHS` of `docs/examples/training/job.yaml`.
const EPOCHS: u64 = 2;

/// Runs the demo. With `keep` the cluster stays up.
pub fn run(keep: bool) -> Result<()> {
    step("Building Forebay and the container images");
    let images = vec![forebay::image()?, debian::training_image()?];
    step("Fetching the data: Debian's oxygen icons, the weights of all-MiniLM-L6");
    let (icons, model) = (data::icons()?, data::model()?);
    step("Starting a Kubernetes cluster of two nodes, and an S3 server");
    let cluster = Cluster::up(&Options { images, ..Options::default() })?;
    let shown = show(&cluster, &icons, &model);
    if keep {
        println!("\nThe cluster stays up. Use it with:");
        println!("  {} get datasets --all-namespaces", paths::kept().join("kubectl").display());
        println!("  cargo xtask cluster down");
    } else {
        cluster.down().context("taking the cluster down")?;
    }
    shown
}

fn show(cluster: &Cluster, icons: &std::path::Path, model: &std::path::Path) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    s3.client().create_bucket("notes")?;
    let (image_files, image_bytes) = s3.upload("notes", "icons/", icons)?;
    let (_, model_bytes) = s3.upload("notes", "models/minilm/", model)?;
    println!("bucket notes: {image_files} images ({}), model {}", megabytes(image_bytes), megabytes(model_bytes));
    s3.reset_traffic()?;

    step("helm install forebay charts/forebay");
    forebay::install(cluster)?;

    step("kubectl apply -f docs/examples");
    let examples = paths::repository().join("docs/examples");
    run_shown(cluster.kubectl_command(&["apply", "--filename"]).arg(&examples))?;

    step("kubectl forebay status -w");
    for dataset in DATASETS {
        wait_until(&format!("Dataset {dataset}"), Duration::from_secs(30), || {
            cluster.get(&["dataset", dataset, "--namespace", NAMESPACE])
        })?;
        let status = status_command(cluster, dataset)?.status().context("running forebay status")?;
        if !status.success() {
            bail!("Dataset {NAMESPACE}/{dataset} was not loaded: {status}");
        }
    }

    step("Training on both nodes");
    let start = Instant::now();
    apply_job(cluster)?;
    follow_job(cluster)?;
    let seconds = start.elapsed().as_secs_f64();

    step("kubectl get datasets,cacheruntimes,pods --all-namespaces");
    run_shown(&mut cluster.kubectl_command(&["get", "datasets,cacheruntimes,pods", "--all-namespaces"]))?;
    let read = 2 * (EPOCHS * image_bytes + model_bytes);
    let served = s3.bytes_served()?;
    println!();
    for dataset in DATASETS {
        let found = cluster.get(&["dataset", dataset, "--namespace", NAMESPACE])?;
        let hit_ratio =
            found["status"]["cache"]["hitRatio"].as_str().unwrap_or("(all opens were served by the kernel)");
        println!("hit ratio of {dataset}: {hit_ratio}");
    }
    println!(
        "the two pods read {} in {seconds:.0} s; {} left the S3 server, {:.2} times the data's size",
        megabytes(read),
        megabytes(served),
        served as f64 / (image_bytes + model_bytes) as f64
    );
    Ok(())
}

fn step(text: &str) {
    println!("\n==> {text}");
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// `kubectl forebay status DATASET -w`: kubectl finds the plugin by its name in the PATH.
fn status_command(cluster: &Cluster, dataset: &str) -> Result<Command> {
    let plugins = paths::kept().join("plugins");
    fs::create_dir_all(&plugins).with_context(|| format!("making {}", plugins.display()))?;
    let plugin = plugins.join("kubectl-forebay");
    let program = forebay::build_programs()?.join("forebay");
    if fs::read_link(&plugin).ok().as_ref() != Some(&program) {
        let _ = fs::remove_file(&plugin);
        symlink(&program, &plugin).with_context(|| format!("linking {}", plugin.display()))?;
    }
    let mut path = plugins.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let arguments = ["forebay", "status", "--namespace", NAMESPACE, dataset, "--watch", "--timeout", "5m"];
    let mut command = cluster.kubectl_command(&arguments);
    command.env("PATH", path).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    Ok(command)
}

fn apply_job(cluster: &Cluster) -> Result<()> {
    let folder = paths::repository().join("docs/examples/training");
    let script = format!("--from-file={}", folder.join("train.py").display());
    let map = cluster.kubectl(&[
        "create",
        "configmap",
        "train",
        "--namespace",
        NAMESPACE,
        &script,
        "--dry-run=client",
        "--output=yaml",
    ])?;
    cluster.apply(&map)?;
    let job = fs::read(folder.join("job.yaml"))?;
    run_with_input(&mut cluster.kubectl_command(&["apply", "--filename=-"]), &job)?;
    Ok(())
}

/// Shows the job's log as it grows and fails when a pod of it fails.
fn follow_job(cluster: &Cluster) -> Result<()> {
    let pods = wait_until("the job's pods to run", Duration::from_secs(120), || {
        let found = cluster.get(&["pods", "--namespace", NAMESPACE, "--selector=app=train"])?;
        let pods = found["items"].as_array().cloned().unwrap_or_default();
        let started = |pod: &&serde_json::Value| pod["status"]["phase"] != "Pending";
        if pods.len() != 2 || pods.iter().filter(started).count() != 2 {
            let phases: Vec<_> = pods.iter().map(|pod| pod["status"]["phase"].to_string()).collect();
            bail!("pods: {}", phases.join(", "));
        }
        Ok(pods)
    })?;
    for pod in &pods {
        println!("{} on {}", pod["metadata"]["name"], pod["spec"]["nodeName"]);
    }
    run_shown(&mut cluster.kubectl_command(&[
        "logs",
        "--namespace",
        NAMESPACE,
        "--selector=app=train",
        "--follow",
        "--prefix",
        "--tail=-1",
    ]))?;
    cluster.kubectl(&["wait", "--namespace", NAMESPACE, "job/train", "--for=condition=Complete", "--timeout=60s"])?;
    Ok(())
}
