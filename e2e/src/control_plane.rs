//! The control plane: etcd, API server, controller manager and scheduler in the control namespace, with certificates and
//! tokens made for this one cluster. Kubeconfigs for every component and for the administrator lie in the run folder.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::command::{command, run};
use crate::daemon::{Daemon, Namespaces};
use crate::network::{CONTROL_ADDRESS, POD_SUBNET, SERVICE_SUBNET};
use crate::paths;
use crate::setup::hex;

/// Seconds after which a node that is silent counts as not ready; short, as tests wait for it.
const NODE_GRACE_SECONDS: u32 = 16;

/// A control plane by its folder; its methods start it and ask it.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Certificates, kubeconfigs, logs and etcd's data.
    pub folder: PathBuf,
    /// Name of its network namespace.
    pub namespace: String,
    /// Where its processes are.
    pub cgroup: Cgroup,
}

impl ControlPlane {
    /// Starts everything and returns once the API server is ready to serve; the others follow on their own.
    pub fn start(&self, nodes: &[String]) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.cgroup.create(true)?;
        let etcd = self.daemon(
            "etcd",
            &[
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=default=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--log-level=warn",
                &format!("--data-dir={}", self.path("etcd")),
            ],
        )?;
        self.write_identities(nodes)?;

        let api_server = self.start_api_server()?;
        let ready = || {
            let arguments = ["get", "--raw", "/readyz", "--request-timeout=2s"];
            let mut kubectl = self.kubectl();
            run(kubectl.args(arguments)).map(drop)
        };
        api_server.wait_ready(Duration::from_mins(1), ready).with_context(|| {
            let state = if etcd.alive() { "runs" } else { "died" };
            format!("the API server did not get ready; etcd {state}, see {}", etcd.log.display())
        })?;

        self.daemon(
            "kube-controller-manager",
            &[
                &format!("--kubeconfig={}", self.path("kube-controller-manager.kubeconfig")),
                "--use-service-account-credentials",
                "--leader-elect=false",
                &format!("--root-ca-file={}", self.path("ca.crt")),
                &format!("--service-account-private-key-file={}", self.path("service-account.key")),
                "--node-monitor-period=2s",
                &format!("--node-monitor-grace-period={NODE_GRACE_SECONDS}s"),
            ],
        )?;
        self.daemon(
            "kube-scheduler",
            &[&format!("--kubeconfig={}", self.path("kube-scheduler.kubeconfig")), "--leader-elect=false"],
        )?;
        Ok(())
    }

    fn start_api_server(&self) -> Result<Daemon> {
        self.daemon(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                &format!("--advertise-address={CONTROL_ADDRESS}"),
                "--secure-port=6443",
                &format!("--service-cluster-ip-range={SERVICE_SUBNET}"),
                &format!("--token-auth-file={}", self.path("tokens.csv")),
                "--authorization-mode=Node,RBAC",
                "--allow-privileged=true",
                &format!("--tls-cert-file={}", self.path("apiserver.crt")),
                &format!("--tls-private-key-file={}", self.path("apiserver.key")),
                &format!("--client-ca-file={}", self.path("ca.crt")),
                &format!("--kubelet-client-certificate={}", self.path("kubelet-client.crt")),
                &format!("--kubelet-client-key={}", self.path("kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP",
                "--service-account-issuer=https://kubernetes.default.svc",
                &format!("--service-account-key-file={}", self.path("service-account.key")),
                &format!("--service-account-signing-key-file={}", self.path("service-account.key")),
                "--profiling=false",
            ],
        )
    }

    /// `kubectl` as administrator, in the control namespace.
    pub fn kubectl(&self) -> std::process::Command {
        self.client("forebay-cluster", &["kubectl"])
    }

    /// A client program of ours in the control namespace, with the administrator's kubeconfig.
    pub fn client(&self, program: &str, arguments: &[&str]) -> std::process::Command {
        let mut line = Namespaces::Network(self.namespace.clone()).enter();
        line.push(paths::bin().join(program).display().to_string());
        let mut client = command(&line[0], &line[1..]);
        client
            .args(arguments)
            .env("KUBECONFIG", self.admin_kubeconfig())
            .env("KUBECACHEDIR", self.path("kubectl-cache"));
        client
    }

    /// The administrator's kubeconfig; its server is reachable from the control namespace only.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    fn daemon(&self, component: &str, arguments: &[&str]) -> Result<Daemon> {
        let mut line = vec![paths::bin().join("forebay-cluster").display().to_string(), component.to_owned()];
        line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let namespaces = Namespaces::Network(self.namespace.clone());
        Daemon::start(
            component,
            &format!("{component} of the control plane"),
            &self.folder,
            &namespaces,
            &self.cgroup,
            &line,
        )
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write_identities(&self, nodes: &[String]) -> Result<()> {
        let first_service = SERVICE_SUBNET.replace(".0/16", ".1");
        let addresses = format!("127.0.0.1,{CONTROL_ADDRESS},{first_service}");
        let program = paths::bin().join("forebay-cluster");
        run(&mut command(program, ["pki", "--dir", &self.path(""), "--addresses", &addresses]))?;

        let mut users = vec![
            ("admin".to_owned(), "admin".to_owned(), "system:masters"),
            ("kube-controller-manager".into(), "system:kube-controller-manager".into(), ""),
            ("kube-scheduler".into(), "system:kube-scheduler".into(), ""),
            ("kube-proxy".into(), "system:kube-proxy".into(), ""),
        ];
        users.extend(nodes.iter().map(|node| (node.clone(), format!("system:node:{node}"), "system:nodes")));
        let mut tokens = String::new();
        for (file, user, group) in users {
            let token = random_token()?;
            let _ = writeln!(tokens, "{token},{user},{user},{group}");
            self.write_kubeconfig(&file, &user, &token)?;
        }
        write_secret(&self.folder.join("tokens.csv"), &tokens)
    }

    fn write_kubeconfig(&self, file: &str, user: &str, token: &str) -> Result<()> {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "forebay-e2e", "cluster": {
                "server": format!("https://{CONTROL_ADDRESS}:6443"),
                "certificate-authority": self.path("ca.crt"),
            }}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "forebay-e2e", "context": {"cluster": "forebay-e2e", "user": user}}],
            "current-context": "forebay-e2e",
        });
        write_secret(&self.folder.join(format!("{file}.kubeconfig")), &kubeconfig.to_string())
    }
}

/// What pods' traffic comes from, for kube-proxy.
pub fn kube_proxy_line(node: &str, kubeconfig: &Path) -> Vec<String> {
    let mut line = vec![paths::bin().join("forebay-cluster").display().to_string()];
    line.extend([
        "kube-proxy".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={node}"),
        "--proxy-mode=iptables".to_owned(),
        format!("--cluster-cidr={POD_SUBNET}"),
        "--conntrack-max-per-core=0".to_owned(),
        "--oom-score-adj=0".to_owned(),
    ]);
    line
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(hex(&bytes))
}

fn write_secret(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}
