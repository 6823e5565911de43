//! The test cluster itself: what scenarios rely on, shown on a cluster of its own beside any other.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use forebay_e2e::scenarios::{self, Scenario};
use forebay_e2e::{Cluster, Options, S3Server, debian, wait_until};

fn main() -> ExitCode {
    scenarios::main(
        || Ok(Options { name: "selftest".into(), images: vec![debian::training_image()?], ..Options::default() }),
        &[
            Scenario { name: "pods_of_both_nodes_reach_a_service", run: pods_of_both_nodes_reach_a_service },
            Scenario { name: "a_pod_reaches_the_api_server_as_its_service_account", run: a_pod_reaches_the_api_server },
            Scenario { name: "the_s3_meter_counts_every_byte_that_leaves", run: the_s3_meter_counts_every_byte },
            Scenario { name: "a_killed_container_is_restarted", run: a_killed_container_is_restarted },
            Scenario { name: "a_killed_node_is_noticed_and_comes_back_with_its_disk", run: a_killed_node_comes_back },
        ],
    )
}

/// A pod that runs a Python program on a node.
fn pod(name: &str, node: &str, program: &str) -> String {
    let program = serde_json::to_string(program).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: forebay-train:dev\n    \
         imagePullPolicy: Never\n    command: [python3, -c, {program}]\n"
    )
}

/// A pod that runs a Python program to its end.
fn job(name: &str, node: &str, program: &str) -> String {
    pod(name, node, program) + "  restartPolicy: Never\n"
}

const WEB_SERVER: &str = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)";

fn pods_of_both_nodes_reach_a_service(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("web", "node-1", WEB_SERVER))?;
    cluster.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}}")?;
    cluster.wait_pod("default", "web", "Running", Duration::from_secs(30))?;
    let service = cluster.get(&["service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("the service has no address")?;
    // kube-proxy learns of the service on its own time, so the clients ask again for a while.
    let client = format!(
        "import time, urllib.request\nfor _ in range(100):\n  try:\n    print(urllib.request.urlopen('http://{address}', timeout=2).status); break\n  \
         except OSError as error: print(error); time.sleep(0.1)\nelse: raise SystemExit('no answer')"
    );
    for node in ["node-1", "node-2"] {
        let name = format!("client-{node}");
        cluster.apply(&job(&name, node, &client))?;
        cluster.wait_pod("default", &name, "Succeeded", Duration::from_mins(1))?;
        let log = cluster.logs("default", &name, "main")?;
        ensure!(log.ends_with("200"), "{name} said {log:?}");
    }
    Ok(())
}

fn a_pod_reaches_the_api_server(cluster: &Cluster) -> Result<()> {
    let client = "import ssl, urllib.request\nd = '/var/run/secrets/kubernetes.io/serviceaccount/'\n\
                  r = urllib.request.Request('https://10.96.0.1/version', headers={'Authorization': 'Bearer ' + open(d + 'token').read()})\n\
                  print(urllib.request.urlopen(r, timeout=10, context=ssl.create_default_context(cafile=d + 'ca.crt')).status)";
    cluster.apply(&job("api-client", "node-2", client))?;
    cluster.wait_pod("default", "api-client", "Succeeded", Duration::from_secs(30)).map(drop)
}

fn the_s3_meter_counts_every_byte(cluster: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("deep er"))?;
    let mut size = 0;
    for number in 0..200_usize {
        let content = vec![number as u8; number * 1000];
        size += content.len() as u64;
        std::fs::write(folder.path().join(format!("deep er/ä+{number}.bin")), content)?;
    }
    let server = S3Server::start(cluster)?;
    let client = server.client();
    client.create_bucket("counted")?;
    let uploaded = server.upload("counted", "pre/", folder.path())?;
    ensure!(uploaded == (200, size), "uploaded {uploaded:?}");
    ensure!(server.bytes_served()? == 0, "uploading made the server send objects");
    for number in [0, 1, 199] {
        ensure!(
            client.get("counted", &format!("pre/deep er/ä+{number}.bin"))?.len() == number * 1000,
            "object {number}"
        );
    }
    let traffic = server.traffic()?.get("GET object").copied().unwrap_or_default();
    ensure!(traffic.requests == 3 && traffic.response_bytes == 200_000, "{traffic:?}");
    let missing = client.get("counted", "pre/none").err().context("an object that is not there was read")?;
    ensure!(format!("{missing:#}").contains("NoSuchKey"), "{missing:#}");

    // An outage: what the server held is there again afterwards.
    server.stop()?;
    ensure!(client.get("counted", "pre/deep er/ä+1.bin").is_err(), "a stopped server answered");
    let server = S3Server::start(cluster)?;
    ensure!(server.client().get("counted", "pre/deep er/ä+1.bin")?.len() == 1000, "the object is gone");
    Ok(())
}

fn a_killed_container_is_restarted(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("victim", "node-2", WEB_SERVER))?;
    cluster.wait_pod("default", "victim", "Running", Duration::from_secs(30))?;
    cluster.kill_container("default", "victim", "main")?;
    cluster.wait_for(&["pod", "victim"], Duration::from_secs(30), |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        if status["restartCount"] == 1 && status["ready"] == true {
            return Ok(());
        }
        bail!("{status}")
    })?;
    Ok(())
}

fn a_killed_node_comes_back(cluster: &Cluster) -> Result<()> {
    let node = cluster.node("node-2")?;
    forebay_e2e::command::run(&mut node.command("sh", &["-c", "echo kept > /var/lib/forebay/file"]))?;
    cluster.kill_node("node-2")?;
    ensure!(!node.running(), "its machine still runs");
    cluster.wait_node_ready("node-2", false)?;
    cluster.boot_node("node-2")?;
    cluster.wait_node_ready("node-2", true)?;
    let kept = forebay_e2e::command::text(&mut node.command("cat", &["/var/lib/forebay/file"]))?;
    ensure!(kept == "kept", "its disk holds {kept:?}");
    cluster.apply(&job("after-boot", "node-2", "print(1)"))?;
    wait_until("a pod on the node that came back", Duration::from_mins(1), || {
        cluster.wait_pod("default", "after-boot", "Succeeded", Duration::ZERO)
    })?;
    Ok(())
}
