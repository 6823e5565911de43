//! Bad input: each mistake gives a condition with a reason and a message that names it within 30 s, the pod's event says why it can't
//! start, and putting the cause right heals it without a restart of anything.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use forebay_e2e::s3::{ENDPOINT, REGION};
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};
use serde_json::Value;

use crate::tenant::{NAMESPACE, dataset, reader};

/// Time from the mistake to its explanation, and from the cure to health.
const LIMIT: Duration = Duration::from_secs(30);

/// Time for a pod that waited to start: the kubelet backs off for up to two minutes between tries of its own.
const POD_LIMIT: Duration = Duration::from_secs(180);

/// One mistake.
struct Case {
    name: &'static str,
    manifest: String,
    /// Reason that one of the conditions must give.
    reason: &'static str,
    /// What its message must name.
    names: &'static str,
    cure: Box<dyn Fn() -> Result<()>>,
}

pub fn bad_input_is_explained_and_heals(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    let client = s3.client();
    client.create_bucket("good")?;
    client.put("good", "file.txt", b"healed\n")?;
    let credentials = s3.credentials();
    let secret = |name: &str, secret_key: &str| {
        format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}, namespace: {NAMESPACE}}}, stringData: {{AWS_ACCESS_KEY_ID: {}, AWS_SECRET_ACCESS_KEY: {secret_key}}}}}",
            credentials.access_key
        )
    };
    let source = |url: &str, endpoint: &str, secret: &str| {
        format!("{{url: '{url}', endpoint: '{endpoint}', region: {REGION}, secretRef: {{name: {secret}}}}}")
    };
    cluster.apply(&secret("wrong", "not-the-secret"))?;
    let owned = cluster.clone();
    let apply = move |text: String| -> Box<dyn Fn() -> Result<()>> {
        let cluster = owned.clone();
        Box::new(move || cluster.apply(&text).map(drop))
    };
    let in_training = |name: &str, source: String| dataset(name, &[("/", source)], "");
    let other_runtime = in_training("no-runtime", forebay::source("s3://good/")).replace(forebay::RUNTIME, "late-pool");
    let server = s3.clone();
    let cases = [
        Case {
            name: "no-bucket",
            manifest: in_training("no-bucket", forebay::source("s3://late-bucket/")),
            reason: "BucketNotFound",
            names: "late-bucket",
            cure: Box::new(move || {
                server.client().create_bucket("late-bucket")?;
                server.client().put("late-bucket", "file.txt", b"healed\n").map(drop)
            }),
        },
        Case {
            name: "wrong-credentials",
            manifest: in_training("wrong-credentials", source("s3://good/", ENDPOINT, "wrong")),
            reason: "AccessDenied",
            names: "s3://good/",
            cure: apply(secret("wrong", &credentials.secret_key)),
        },
        Case {
            name: "no-secret",
            manifest: in_training("no-secret", source("s3://good/", ENDPOINT, "late-secret")),
            reason: "SecretNotFound",
            names: "late-secret",
            cure: apply(secret("late-secret", &credentials.secret_key)),
        },
        Case {
            name: "no-endpoint",
            manifest: in_training("no-endpoint", source("s3://good/", "http://198.18.0.1:9", "s3")),
            reason: "EndpointUnreachable",
            names: "198.18.0.1:9",
            cure: apply(in_training("no-endpoint", source("s3://good/", ENDPOINT, "s3"))),
        },
        Case {
            name: "no-runtime",
            manifest: other_runtime,
            reason: "RuntimeNotFound",
            names: "late-pool",
            cure: apply(
                forebay::runtime_manifest("1Gi").replace(forebay::RUNTIME, "late-pool").replace("disk0", "disk1"),
            ),
        },
    ];
    let applied = Instant::now();
    for case in &cases {
        cluster.apply(&case.manifest)?;
        cluster.apply(&reader(case.name, "node-1", case.name, "cat /data/file.txt"))?;
    }
    for case in &cases {
        let left = LIMIT.saturating_sub(applied.elapsed());
        wait_until(&format!("Dataset {} to say {}", case.name, case.reason), left, || {
            let dataset = cluster.get(&["dataset", case.name, "--namespace", NAMESPACE])?;
            let conditions = dataset["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let explained = |condition: &Value| {
                condition["reason"] == case.reason
                    && condition["message"].as_str().is_some_and(|message| message.contains(case.names))
            };
            if conditions.iter().any(explained) {
                return Ok(());
            }
            bail!("its conditions: {conditions:?}")
        })?;
        println!("{}: {} after {:.1} s", case.name, case.reason, applied.elapsed().as_secs_f64());
    }
    for case in &cases {
        wait_until(&format!("an event of pod {} to say {}", case.name, case.reason), LIMIT, || {
            let selector = format!("--field-selector=involvedObject.name={},reason=FailedMount", case.name);
            let events = cluster.kubectl(&[
                "get",
                "events",
                "--namespace",
                NAMESPACE,
                &selector,
                "--output=jsonpath={.items[*].message}",
            ])?;
            ensure!(events.contains(case.reason), "its events: {events}");
            Ok(())
        })?;
    }
    for case in &cases {
        (case.cure)()?;
    }
    let cured = Instant::now();
    for case in &cases {
        let left = LIMIT.saturating_sub(cured.elapsed());
        forebay::wait_condition(cluster, "dataset", NAMESPACE, case.name, "Ready", left)?;
        println!("{}: healed after {:.1} s", case.name, cured.elapsed().as_secs_f64());
    }
    for case in &cases {
        cluster.wait_pod(NAMESPACE, case.name, "Succeeded", POD_LIMIT)?;
        ensure!(cluster.logs(NAMESPACE, case.name, "main")?.trim() == "healed", "{} read something else", case.name);
    }
    Ok(())
}

pub fn unsupported_fields_are_refused(cluster: &Cluster) -> Result<()> {
    let source = || forebay::source("s3://good/");
    let follow = dataset("refused", &[("/", source())], "version: {Follow: {interval: 10m}}");
    let contradiction = dataset("refused", &[("/", source())], "placement: {mode: Everywhere, replicas: 2}");
    let priority = dataset("refused", &[("/", source())], "preload: {priority: 50}");
    let two_sources = dataset("refused", &[("/", format!("{}, {}", source(), source()))], "");
    let link = dataset("refused", &[("/", source().replace("secretRef", "link: line-a, secretRef"))], "");
    let typo = dataset("refused", &[("/", source())], "capacty: 1Gi");
    let relative = dataset("refused", &[("images", source())], "");
    for (what, manifest, says) in [
        ("version Follow", follow, "ollow"),
        ("replicas of what is everywhere", contradiction, "contradicts mode Everywhere"),
        ("a preload's priority", priority, "not supported yet"),
        ("a second source", two_sources, "not supported yet"),
        ("a link", link, "not supported yet"),
        ("an unknown field", typo, "capacty"),
        ("a relative path", relative, "path"),
    ] {
        match cluster.apply(&manifest) {
            Ok(_) => bail!("{what} was accepted"),
            Err(error) => ensure!(format!("{error:#}").contains(says), "{what} was refused by: {error:#}"),
        }
    }
    Ok(())
}
