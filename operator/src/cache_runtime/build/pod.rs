//! The pod of a cache node.

use std::path::Path;

use forebay_protocol::layout::{FOREBAY_GID, NODE_UID};
use serde_json::{Value, json};

use super::super::selection::node_expressions;
use super::super::validate::ValidRuntime;
use super::secrets::{CONFIG_FILE, config_name};
use super::{HEALTH_PORT, NODE_PORT, RUNTIME_LABEL};
use crate::Arguments;

/// Where the configuration is mounted.
const CONFIG_DIR: &str = "/etc/forebay";

/// The pod of a cache node.
pub fn pod(runtime: &ValidRuntime, arguments: &Arguments) -> Value {
    let name = &runtime.name.name;
    let (cache_dir, run_dir) = (runtime.cache_dir(), arguments.run_dir.as_path());
    let mut volumes = vec![
        json!({"name": "config", "secret": {"secretName": config_name(name), "defaultMode": 0o440}}),
        host_folder("storage", &runtime.host_path),
        host_folder("run", run_dir),
    ];
    let mut writable =
        vec![json!({"name": "storage", "mountPath": runtime.host_path}), json!({"name": "run", "mountPath": run_dir})];
    let mut prepare = vec![json!("/forebay-node"), json!("prepare"), json!("--cache-dir"), json!(cache_dir)];
    prepare.extend([json!("--run-dir"), json!(run_dir)]);
    if let (Some(tier), Some(config)) = (&runtime.memory_tier, runtime.memory_tier()) {
        volumes.push(host_folder("memory", &tier.root));
        writable.push(json!({"name": "memory", "mountPath": tier.root}));
        prepare.extend([json!("--memory-dir"), json!(config.dir)]);
    }
    let mut mounts = vec![json!({"name": "config", "mountPath": CONFIG_DIR, "readOnly": true})];
    mounts.extend(writable.clone());
    for (index, root) in arguments.file_source_root.iter().enumerate() {
        let volume = format!("source-{index}");
        volumes.push(host_folder(&volume, root));
        // What is mounted there later is seen too.
        mounts
            .push(json!({"name": volume, "mountPath": root, "readOnly": true, "mountPropagation": "HostToContainer"}));
    }
    let affinity = json!({
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {RUNTIME_LABEL: name}}, "topologyKey": "kubernetes.io/hostname"},
        ]},
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": node_expressions(runtime)}],
        }},
    });
    let probe = |path: &str, period: u32, failures: u32| json!({"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5});
    let mut pod = json!({
        "serviceAccountName": format!("{name}-node"),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {"fsGroup": FOREBAY_GID, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}},
        "affinity": affinity,
        "tolerations": runtime.tolerations,
        "initContainers": [{
            "name": "prepare",
            "image": arguments.node_image,
            "imagePullPolicy": arguments.image_pull_policy,
            "command": prepare,
            // Root only to make the folders and give them to the cache node's user and group.
            "securityContext": {
                "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]},
            },
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "volumeMounts": writable,
        }],
        "containers": [{
            "name": "forebay-node",
            "image": arguments.node_image,
            "imagePullPolicy": arguments.image_pull_policy,
            "command": ["/forebay-node", "--config", format!("{CONFIG_DIR}/{CONFIG_FILE}"), "--advertise", format!("$(POD_IP):{NODE_PORT}")],
            "env": [
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "RUST_LOG", "value": arguments.node_log_level},
            ],
            "ports": [{"name": "node", "containerPort": NODE_PORT}, {"name": "metrics", "containerPort": HEALTH_PORT}],
            // Opening a large index may take a while; a node that can't reach others is alive all the same.
            "startupProbe": probe("/healthz", 1, 300),
            "readinessProbe": probe("/readyz", 3, 3),
            "livenessProbe": probe("/healthz", 10, 6),
            "resources": resources(runtime),
            "securityContext": {
                "runAsUser": NODE_UID, "runAsGroup": FOREBAY_GID, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    });
    if !arguments.image_pull_secret.is_empty() {
        pod["imagePullSecrets"] = arguments.image_pull_secret.iter().map(|name| json!({"name": name})).collect();
    }
    pod
}

/// What the program takes beside the memory that it is configured for.
const PROGRAM_BYTES: u64 = 64 << 20;

/// What the pod may take beside the memory that it is configured for: the program, pages of the index and of files that are being written, which the
/// kernel counts as the pod's, the kernel's own buffers, and what allocations waste. What is above that is a fault worth a restart.
const MARGIN_BYTES: u64 = 512 << 20;

fn resources(runtime: &ValidRuntime) -> Value {
    let content = runtime.content_in_memory_bytes();
    let bytes = |more: u64| runtime.memory_bytes.saturating_add(content).saturating_add(more).to_string();
    json!({"requests": {"cpu": "100m", "memory": bytes(PROGRAM_BYTES)}, "limits": {"memory": bytes(MARGIN_BYTES)}})
}

fn host_folder(name: &str, path: &Path) -> Value {
    json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
}

#[cfg(test)]
mod tests {
    use super::super::super::validate::tests::{check, runtime};
    use super::super::tests::{arguments, stateful_set};
    use super::*;

    fn assert_kept(said: &Value, kept: &Value, path: &str) {
        match said {
            Value::Object(object) => {
                object.iter().for_each(|(name, said)| assert_kept(said, &kept[name], &format!("{path}.{name}")));
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, said)| assert_kept(said, &kept[i], &format!("{path}[{i}]")));
            }
            _ => assert_eq!(said, kept, "{path}"),
        }
    }

    /// What Kubernetes' types don't know is dropped when JSON becomes typed, so a slip of the pen would be silent.
    #[test]
    fn nothing_that_the_builders_say_is_lost_in_kubernetes_types() {
        let runtime = runtime("/var/lib/forebay/nvme0");
        let valid = check(&runtime).unwrap();
        let said = pod(&valid, &arguments(&["--file-source-root", "/mnt/nfs", "--image-pull-secret", "registry"]));
        let typed: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(said.clone()).unwrap();
        let kept = serde_json::to_value(typed).unwrap();
        assert_kept(&said, &kept, "pod");
    }

    #[test]
    fn file_source_roots_are_mounted_read_only_at_their_own_path() {
        let set = stateful_set(json!({}), &["--file-source-root", "/mnt/nfs"]);
        let mounts = set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().clone();
        let mount = mounts.iter().find(|mount| mount["mountPath"] == "/mnt/nfs").unwrap();
        assert_eq!(mount["readOnly"], true);
    }

    #[test]
    fn requests_and_limits_follow_the_configured_memory() {
        let mut runtime = runtime("/var/lib/forebay");
        let resources = |runtime: &forebay_crds::CacheRuntime| {
            pod(&check(runtime).unwrap(), &arguments(&[]))["containers"][0]["resources"].clone()
        };
        assert_eq!(
            resources(&runtime),
            json!({"requests": {"cpu": "100m", "memory": (576_u64 << 20).to_string()}, "limits": {"memory": (1_u64 << 30).to_string()}})
        );
        runtime.spec.nodes = Some(serde_json::from_value(json!({"memory": "2Gi"})).unwrap());
        assert_eq!(resources(&runtime)["limits"]["memory"], (2560_u64 << 20).to_string());
        let memory = serde_json::from_value(json!({"medium": "Memory", "capacity": "1Gi"})).unwrap();
        runtime.spec.storage.insert(0, memory);
        assert_eq!(resources(&runtime)["limits"]["memory"], (3584_u64 << 20).to_string());
        assert_eq!(resources(&runtime)["requests"]["memory"], (3136_u64 << 20).to_string());
    }

    #[test]
    fn a_memory_tier_is_mounted_and_made_beside_the_disks_folder() {
        let mut runtime = runtime("/var/lib/forebay");
        let memory = serde_json::from_value(json!({"medium": "Memory", "capacity": "1Gi"})).unwrap();
        runtime.spec.storage.insert(0, memory);
        let pod = pod(&check(&runtime).unwrap(), &arguments(&[]));
        for container in ["initContainers", "containers"] {
            let mounts = pod[container][0]["volumeMounts"].as_array().unwrap();
            let found = mounts.iter().find(|mount| mount["name"] == "memory").unwrap();
            assert_eq!(found["mountPath"], "/dev/shm/forebay");
        }
        let command = pod["initContainers"][0]["command"].as_array().unwrap();
        assert_eq!(command[command.len() - 2..], [json!("--memory-dir"), json!("/dev/shm/forebay/forebay.pool")]);
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().any(|volume| volume["hostPath"]["path"] == "/dev/shm/forebay"));
    }
}
