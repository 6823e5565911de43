//! `forebay status`: reads Datasets from the API server and shows them. How they look is `render`'s; following one is `watch`'s.

mod render;
mod watch;

use std::error::Error as _;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use forebay_crds::Dataset;
use kube::api::ListParams;
use kube::{Api, Client, Config};

use crate::args::StatusArgs;

/// Runs the command.
#[tokio::main]
pub async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let config = Config::infer().await.map_err(|error| {
        // Its own text has this and why we are in no pod, each several times.
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        anyhow!("there is no cluster to ask; set KUBECONFIG, or run as `kubectl forebay` where kubectl works: {cause}")
    })?;
    let client = Client::try_from(config).context("connecting to the API server")?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let datasets: Api<Dataset> =
        if args.all_namespaces { Api::all(client) } else { Api::namespaced(client, &namespace) };
    match &args.name {
        Some(name) if args.watch => watch::follow(&datasets, &namespace, name, args.timeout).await,
        Some(name) => {
            let dataset = datasets.get(name).await.with_context(|| format!("reading Dataset {namespace}/{name}"))?;
            print!("{}", render::details(&dataset));
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let list = datasets.list(&ListParams::default()).await.context("listing Datasets")?;
            if list.items.is_empty() {
                let place =
                    if args.all_namespaces { "any namespace".to_owned() } else { format!("namespace {namespace}") };
                eprintln!("No Datasets in {place}.");
            } else {
                print!("{}", render::table(&list.items, args.all_namespaces));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
