//! Talking to the cluster as people do: kubectl and helm, and waiting for what they show.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Cluster, Options};
use crate::command::{run, run_shown, run_with_input, text};
use crate::paths;
use crate::wait::wait_until;

impl Cluster {
    /// `kubectl` with these arguments, to be run by the caller.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut kubectl = self.control_plane().kubectl();
        kubectl.args(arguments);
        kubectl
    }

    /// Runs `kubectl` and returns what it printed; a failure is an error with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        text(&mut self.kubectl_command(arguments))
    }

    /// An object, or a list of them, as JSON: `get(&["pods", "-n", "x"])`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut kubectl = self.kubectl_command(&["get", "--output=json"]);
        let output = run(kubectl.args(arguments))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("kubectl get {} printed no JSON", arguments.join(" ")))
    }

    /// Applies manifests (YAML, one or more documents) and returns what kubectl said of each.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let output = run_with_input(&mut self.kubectl_command(&["apply", "--filename=-"]), manifests.as_bytes())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `helm` and returns what it printed.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        text(&mut self.helm_command(arguments))
    }

    /// `helm` with these arguments, to be run by the caller.
    pub fn helm_command(&self, arguments: &[&str]) -> Command {
        let mut helm = self.control_plane().client("helm", arguments);
        // Helm's own files stay with the cluster.
        helm.env("HELM_CACHE_HOME", self.run_folder.join("helm/cache"));
        helm.env("HELM_CONFIG_HOME", self.run_folder.join("helm/config"));
        helm.env("HELM_DATA_HOME", self.run_folder.join("helm/data"));
        helm
    }

    /// A pod's log so far. `container`: one of its containers.
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        self.kubectl(&["logs", "--namespace", namespace, pod, "--container", container])
    }

    /// Shows a pod's log on our own terminal as it grows, until its container ends.
    pub fn follow_logs(&self, namespace: &str, pod: &str) -> Result<()> {
        run_shown(&mut self.kubectl_command(&["logs", "--follow", "--namespace", namespace, pod]))
    }

    /// Waits until `ready` accepts the object, by its JSON; its error is the state that a timeout reports.
    pub fn wait_for(&self, object: &[&str], timeout: Duration, ready: impl Fn(&Value) -> Result<()>) -> Result<Value> {
        wait_until(&object.join(" "), timeout, || {
            let found = self.get(object)?;
            ready(&found)?;
            Ok(found)
        })
    }

    /// Waits until a pod is in this phase (`Running` includes that all its containers are ready). A pod that failed
    /// instead ends the wait with its conditions and events.
    pub fn wait_pod(&self, namespace: &str, pod: &str, phase: &str, timeout: Duration) -> Result<Value> {
        let object = ["pod", pod, "--namespace", namespace];
        let waited = self.wait_for(&object, timeout, |found| {
            let status = &found["status"];
            let now = status["phase"].as_str().unwrap_or("unknown");
            if now == phase && (phase != "Running" || condition(found, "Ready").0 == "True") {
                return Ok(());
            }
            if now == "Failed" {
                bail!(crate::wait::Fatal(format!("the pod failed: {}", status["containerStatuses"])));
            }
            bail!("phase {now}, containers {}", status["containerStatuses"])
        });
        waited.with_context(|| {
            let selector = format!("--field-selector=involvedObject.name={pod}");
            let events = self.kubectl(&["get", "events", "--namespace", namespace, &selector]);
            format!(
                "pod {namespace}/{pod} did not become {phase}; its events:\n{}",
                events.unwrap_or_else(|e| e.to_string())
            )
        })
    }

    /// Waits until the node is ready, or until the cluster has noticed that it is not.
    pub fn wait_node_ready(&self, name: &str, ready: bool) -> Result<()> {
        let wanted = if ready { "True" } else { "not True" };
        let waited = self.wait_for(&["node", name], Duration::from_mins(1), |node| {
            let (status, message) = condition(node, "Ready");
            if (status == "True") == ready {
                return Ok(());
            }
            bail!("Ready is {status}: {message}")
        });
        waited.map(drop).with_context(|| {
            let logs = self.node(name).map(|node| node.daemons()).unwrap_or_default();
            let tails: Vec<String> = logs
                .iter()
                .map(|daemon| format!("{}:\n{}", daemon.title, crate::command::log_tail(&daemon.log)))
                .collect();
            format!("{name} did not become Ready={wanted}; the last lines of its daemons' logs: {}", tails.join("\n"))
        })
    }

    /// `target/e2e/kubectl` and `target/e2e/helm`: the programs as they are run from a shell.
    pub(super) fn write_wrappers(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        for (name, command) in [("kubectl", self.kubectl_command(&[])), ("helm", self.helm_command(&[]))] {
            let mut script =
                String::from("#!/bin/sh\n# Made by `cargo xtask cluster up`: runs in the test cluster's network.\n");
            for (variable, value) in command.get_envs() {
                let value = value.unwrap_or_default().to_string_lossy();
                let _ = writeln!(script, "export {}='{value}'", variable.to_string_lossy());
            }
            let _ = writeln!(script, "exec {} \"$@\"", crate::command::describe(&command));
            let path = paths::kept().join(self.wrapper_name(name));
            fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// The default cluster's wrappers have the programs' own names.
    fn wrapper_name(&self, program: &str) -> String {
        if self.options.name == Options::default().name {
            program.to_owned()
        } else {
            format!("{program}-{}", self.options.name)
        }
    }
}

/// Status and message of an object's condition; `Unknown` if it has none of this type.
pub fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let field = |name: &str, otherwise: &str| {
        found.and_then(|condition| condition[name].as_str()).unwrap_or(otherwise).to_owned()
    };
    (field("status", "Unknown"), field("message", "not reported yet"))
}
