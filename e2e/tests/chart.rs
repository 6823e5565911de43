//! What the chart gives its pods: nobody but the plugin has rights on a node.

#![allow(clippy::unwrap_used)]

use forebay_e2e::command::{command, text};
use forebay_e2e::{paths, setup};
use serde_json::{Value, json};

/// All objects that the chart renders with its defaults; none where helm is not there.
fn rendered() -> Option<Vec<Value>> {
    let helm = paths::bin().join("helm");
    if !helm.exists() {
        eprintln!("skipped: {} is not there: `cargo xtask test` builds it", helm.display());
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return None;
    }
    let chart = paths::repository().join("charts/forebay").display().to_string();
    let kubernetes = setup::KUBERNETES_VERSION;
    let arguments = ["template", "forebay", &chart, "--namespace", "forebay", "--kube-version", kubernetes];
    let yaml = text(&mut command(helm, arguments)).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&yaml);
    let objects = documents.map(|document| serde::Deserialize::deserialize(document).unwrap());
    Some(objects.filter(|object: &Value| object.is_object()).collect())
}

/// The pod template of a DaemonSet or Deployment.
fn pod(objects: &[Value], name: &str) -> Value {
    let workload = objects.iter().find(|it| it["spec"]["template"].is_object() && it["metadata"]["name"] == name);
    workload.unwrap_or_else(|| panic!("the chart renders no workload {name}"))["spec"]["template"]["spec"].clone()
}

fn containers(pod: &Value) -> Vec<Value> {
    ["initContainers", "containers"].iter().filter_map(|kind| pod[kind].as_array()).flatten().cloned().collect()
}

#[test]
fn operator_and_fuse_daemon_run_as_users_without_rights() {
    let Some(objects) = rendered() else { return };
    for name in ["forebay-fuse", "forebay-operator"] {
        let pod = pod(&objects, name);
        for shared in ["hostPID", "hostIPC", "hostNetwork"] {
            assert_ne!(pod[shared], true, "{name}: {shared}");
        }
        for container in containers(&pod) {
            // What a container says itself goes before what its pod says.
            let said = |field: &str| {
                let own = container["securityContext"][field].clone();
                if own.is_null() { pod["securityContext"][field].clone() } else { own }
            };
            assert_eq!(said("runAsNonRoot"), true, "{name}");
            assert!(said("runAsUser").as_u64().is_some_and(|user| user > 0), "{name}: {}", said("runAsUser"));
            assert_eq!(said("seccompProfile"), json!({"type": "RuntimeDefault"}), "{name}");
            assert_eq!(said("allowPrivilegeEscalation"), false, "{name}");
            assert_eq!(said("readOnlyRootFilesystem"), true, "{name}");
            assert_eq!(said("capabilities"), json!({"drop": ["ALL"]}), "{name}");
            assert_ne!(said("privileged"), true, "{name}");
        }
    }
}

#[test]
fn the_fuse_daemon_has_sockets_of_its_machine_and_nothing_else() {
    let Some(objects) = rendered() else { return };
    let pod = pod(&objects, "forebay-fuse");
    assert_eq!(pod["automountServiceAccountToken"], false);
    let volumes: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|it| &it["hostPath"]["path"]).collect();
    assert_eq!(volumes, ["/var/lib/forebay/run"]);
    // The same for the ServiceAccount: whoever starts a pod with it gets no token either.
    let account = |it: &&Value| it["kind"] == "ServiceAccount" && it["metadata"]["name"] == "forebay-fuse";
    assert_eq!(objects.iter().find(account).unwrap()["automountServiceAccountToken"], false);
}

#[test]
fn only_the_csi_plugin_is_privileged() {
    let Some(objects) = rendered() else { return };
    let workloads = objects.iter().filter(|it| it["spec"]["template"].is_object());
    let privileged: Vec<_> = workloads
        .filter(|it| {
            let containers = containers(&it["spec"]["template"]["spec"]);
            containers.iter().any(|container| container["securityContext"]["privileged"] == true)
        })
        .map(|it| it["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(privileged, ["forebay-csi"]);
}
