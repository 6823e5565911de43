//! A node: containerd, kubelet and kube-proxy in a network namespace and a mount namespace of their own. The paths a node
//! owns on a real machine (/run, /var/lib/kubelet, ...) are its own folders, bound over the host's inside that mount
//! namespace only. Killing a node is pulling its cable and killing every process of it; booting it again keeps its disk.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::command::{command, run, text};
use crate::control_plane::kube_proxy_line;
use crate::daemon::{Daemon, Namespaces};
use crate::images::PAUSE_IMAGE;
use crate::network::{NODE_SUBNET, POD_SUBNET, SERVICE_SUBNET, node_address, pod_subnet};
use crate::paths;

/// Folders of a node: its own one's name, where it is bound, and whether it survives a reboot.
const OWN_FOLDERS: &[(&str, &str, bool)] = &[
    ("run", "/run", false),
    ("containerd", "/var/lib/containerd", true),
    ("kubelet", "/var/lib/kubelet", true),
    ("forebay", "/var/lib/forebay", true),
    // A cluster's run folder is on a tmpfs, as the chart's memoryRoot must be.
    ("memory", "/dev/shm/forebay", false),
    ("cni", "/var/lib/cni", false),
    ("pod-logs", "/var/log/pods", true),
    ("container-logs", "/var/log/containers", true),
    ("cni-config", "/etc/cni", true),
];

/// Kernel settings that a kubelet insists on. It finds them in files of ours, so that the host's stay as they are.
const KERNEL_SETTINGS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// One node; its methods start it and act on it.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its number: 1, 2, ...
    pub number: u8,
    /// Its name: `node-1`, ...
    pub name: String,
    /// Its disk, configuration and logs.
    pub folder: PathBuf,
    /// Name of its network namespace.
    pub namespace: String,
    /// Where all its processes are, containers included.
    pub cgroup: Cgroup,
}

impl Node {
    /// Folders of the host that must exist for a node's own to be bound there; returns those that did not.
    pub fn make_mount_points() -> Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        for (_, target, _) in OWN_FOLDERS {
            let target = Path::new(target);
            if !target.exists() {
                fs::create_dir_all(target).with_context(|| format!("making {}", target.display()))?;
                made.push(target.to_path_buf());
            }
        }
        Ok(made)
    }

    /// Boots the machine as far as containerd, ready for images.
    pub fn start_runtime(&self) -> Result<()> {
        // Those of containers of an earlier boot are none that a machine has, and the kubelet looks for each of them.
        self.cgroup.remove()?;
        self.cgroup.create(false)?;
        self.cgroup.child("system").create(true)?;
        self.start_machine()?;
        self.write_runtime_config()?;
        self.start_containerd()
    }

    /// Starts containerd on a machine that runs.
    pub fn start_containerd(&self) -> Result<()> {
        let containerd =
            self.daemon("containerd", &["containerd".into(), "--config".into(), self.path("containerd.toml")])?;
        containerd.wait_ready(Duration::from_secs(30), || {
            run(&mut self.command("ctr", &["--timeout", "2s", "version"])).map(drop)
        })
    }

    /// Starts the kubelet; the API server must serve already.
    pub fn start_kubelet(&self, kubeconfig: &Path, ca: &Path) -> Result<()> {
        let config = self.path("kubelet.json");
        fs::write(&config, self.kubelet_config(ca).to_string()).with_context(|| format!("writing {config}"))?;
        let program = paths::bin().join("forebay-cluster").display().to_string();
        let line = [
            program,
            "kubelet".into(),
            format!("--config={config}"),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", node_address(self.number)),
            "--root-dir=/var/lib/kubelet".into(),
            "--cert-dir=/var/lib/kubelet/pki".into(),
        ];
        self.daemon("kubelet", &line).map(drop)
    }

    /// Starts kube-proxy.
    pub fn start_proxy(&self, kubeconfig: &Path) -> Result<()> {
        self.daemon("kube-proxy", &kube_proxy_line(&self.name, kubeconfig)).map(drop)
    }

    /// Kills the kubelet alone, as a crash would end it.
    pub fn kill_kubelet(&self) -> Result<()> {
        Daemon::recorded("kubelet", &self.title("kubelet"), &self.folder)?.kill()
    }

    /// Imports an image archive into the node's containerd.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        let archive_path = archive.display().to_string();
        run(&mut self.command("ctr", &["--namespace", "k8s.io", "images", "import", "--all-platforms", &archive_path]))
            .with_context(|| format!("importing {} on {}", archive.display(), self.name))?;
        Ok(())
    }

    /// A program in the node's network and mount namespaces.
    pub fn command(&self, program: &str, arguments: &[&str]) -> std::process::Command {
        // Without a machine there is nothing to enter, and nsenter says so.
        let pid = self.machine().map_or(0, |machine| machine.pid);
        let line = Namespaces::Process(pid).enter();
        let mut inside = command(&line[0], &line[1..]);
        inside.arg(program).args(arguments);
        inside
    }

    /// True while the node's machine runs.
    pub fn running(&self) -> bool {
        self.machine().is_ok_and(|machine| machine.alive())
    }

    /// The node's daemons, as they were last started.
    pub fn daemons(&self) -> Vec<Daemon> {
        ["containerd", "kubelet", "kube-proxy"]
            .iter()
            .filter_map(|name| Daemon::recorded(name, &format!("{name} of {}", self.name), &self.folder).ok())
            .collect()
    }

    /// The process id of a running container on this node, by the container's id.
    pub fn container_pid(&self, container: &str) -> Result<u32> {
        let listed = run(&mut self.command("ctr", &["--namespace", "k8s.io", "tasks", "list"]))?;
        let listed = String::from_utf8_lossy(&listed.stdout);
        for line in listed.lines() {
            let mut fields = line.split_whitespace();
            if let (Some(id), Some(pid)) = (fields.next(), fields.next())
                && id == container
            {
                return pid
                    .parse()
                    .with_context(|| format!("container {container} on {}: no process id in {line:?}", self.name));
            }
        }
        bail!("container {container} has no process on {}; its tasks:\n{listed}", self.name)
    }

    /// Kills every process of the node, containers included, at once.
    pub fn kill(&self) -> Result<()> {
        self.cgroup.kill_all().with_context(|| format!("killing {}", self.name))
    }

    /// Kills them all but the one that holds the node's namespaces, so that mounts stay as they are, and files, and sockets that nobody listens to.
    pub fn kill_all_but_the_machine(&self) -> Result<()> {
        let machine = self.machine()?.pid;
        self.cgroup.kill_all_but(&[machine]).with_context(|| format!("killing the processes of {}", self.name))
    }

    /// What is mounted on the node, as `/proc/self/mountinfo` says.
    pub fn mountinfo(&self) -> Result<String> {
        text(&mut self.command("cat", &["/proc/self/mountinfo"]))
    }

    /// A process that holds the node's namespaces, with the node's own folders bound in place.
    fn start_machine(&self) -> Result<()> {
        let marker = self.folder.join("booted");
        let mut script = String::from("set -e\n");
        for (own, target, kept) in OWN_FOLDERS {
            let own = self.folder.join(own);
            if !kept && own.exists() {
                fs::remove_dir_all(&own).with_context(|| format!("clearing {}", own.display()))?;
            }
            fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
            let _ = writeln!(script, "mount --bind {} {target}", own.display());
        }
        fs::create_dir_all(self.folder.join("run/lock"))?;
        fs::create_dir_all(self.folder.join("sysctl"))?;
        for (setting, value) in KERNEL_SETTINGS {
            let file = self.folder.join("sysctl").join(setting.replace('/', "."));
            fs::write(&file, format!("{value}\n"))?;
            let _ = writeln!(script, "mount --bind {} /proc/sys/{setting}", file.display());
        }
        // From here on a mount in a Bidirectional volume reaches the node and its other pods.
        let _ = writeln!(script, "mount --make-rshared /\necho > {}\nexec sleep infinity", marker.display());

        let _ = fs::remove_file(&marker);
        let network = format!("--net=/run/netns/{}", self.namespace);
        let line = ["nsenter", &network, "--", "unshare", "--mount", "--propagation", "private", "sh", "-c", &script];
        let line = line.map(str::to_owned);
        let machine =
            Daemon::start_line("machine", &self.title("machine"), &self.folder, &self.cgroup.child("system"), &line)?;
        machine.wait_ready(Duration::from_secs(10), || {
            if !marker.exists() {
                bail!("its folders are not bound yet");
            }
            Ok(())
        })
    }

    fn machine(&self) -> Result<Daemon> {
        Daemon::recorded("machine", &self.title("machine"), &self.folder)
    }

    fn daemon(&self, name: &str, line: &[String]) -> Result<Daemon> {
        let namespaces = Namespaces::Process(self.machine()?.pid);
        Daemon::start(name, &self.title(name), &self.folder, &namespaces, &self.cgroup.child("system"), line)
    }

    fn title(&self, daemon: &str) -> String {
        format!("{daemon} of {}", self.name)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write_runtime_config(&self) -> Result<()> {
        // `restrict_oom_score_adj`: without CAP_SYS_RESOURCE even root can't lower it.
        let containerd = format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
"#
        );
        fs::write(self.path("containerd.toml"), containerd)?;
        // Each pod hangs on a veth of its own (ptp), so that all its traffic is routed and kube-proxy's rules see it,
        // also between two pods of one node.
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "ipMasq": false, "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{"subnet": pod_subnet(self.number)}]],
                    "routes": [{"dst": POD_SUBNET}, {"dst": SERVICE_SUBNET}, {"dst": NODE_SUBNET}],
                }},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        let folder = self.folder.join("cni-config/net.d");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("10-pods.conflist"), network.to_string())?;
        Ok(())
    }

    fn kubelet_config(&self, ca: &Path) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": ca},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup.absolute(),
            "failCgroupV1": false,
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "oomScoreAdj": 0,
            "resolvConf": "",
            // The host's disk and memory are shared with everything else on this machine: pods are not evicted for it.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            // Tests wait for what the kubelet notices.
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 16,
        })
    }
}
