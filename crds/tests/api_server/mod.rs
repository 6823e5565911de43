//! A real API server (with etcd, nothing else: no controllers, so admission that only they can answer is off) on loopback, for tests of
//! admission and of the operator. It ends with the test process: a shell holds both programs and waits for its standard input to close.

#![allow(
    clippy::unwrap_used,
    clippy::zombie_processes,
    reason = "test support; the shell ends after the process that would wait for it"
)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

const ADMIN: &str = "admin-token";
const OPERATOR: &str = "operator-token";

struct Server {
    port: u16,
    /// The shell ends when this closes, which is when the process ends.
    _lifeline: ChildStdin,
}

/// A client of the server with Forebay's kinds installed; none, with the reason printed, when the program is not built.
pub async fn client() -> Option<Client> {
    let client = connect(server()?.port, ADMIN).await;
    let deadline = Instant::now() + Duration::from_secs(120);
    while client.apiserver_version().await.is_err() {
        assert!(Instant::now() < deadline, "the API server did not get ready");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    install(&client).await;
    Some(client)
}

/// A client of the user `operator`, who has no rights but those that the test grants.
#[allow(dead_code, reason = "not every test has an operator")]
pub async fn operator_client() -> Option<Client> {
    Some(connect(server()?.port, OPERATOR).await)
}

fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(start).as_ref()
}

fn start() -> Option<Server> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e/bin");
    let names = ["forebay-cluster", "cluster"];
    let Some(program) = names.iter().map(|name| target.join(name)).find(|path| path.exists()) else {
        eprintln!("skipped: {} is not built (cargo xtask cluster up builds it)", target.join(names[0]).display());
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return None;
    };
    let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let folder = base.join(format!("forebay-api-server-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(
        folder.join("tokens.csv"),
        format!("{ADMIN},admin,admin,system:masters\n{OPERATOR},operator,operator\n"),
    )
    .unwrap();
    // All are held until all are chosen, so that they differ.
    let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    drop(listeners);
    let script = r#"
        cd "$FOLDER" || exit 1
        "$PROGRAM" pki --dir "$FOLDER" --addresses 127.0.0.1 || exit 1
        "$PROGRAM" etcd --unsafe-no-fsync --data-dir="$FOLDER/etcd" --log-level=error \
            --listen-client-urls=http://127.0.0.1:$ETCD --advertise-client-urls=http://127.0.0.1:$ETCD \
            --listen-peer-urls=http://127.0.0.1:$PEER --initial-advertise-peer-urls=http://127.0.0.1:$PEER \
            --initial-cluster=default=http://127.0.0.1:$PEER >etcd.log 2>&1 &
        etcd=$!
        "$PROGRAM" kube-apiserver --etcd-servers=http://127.0.0.1:$ETCD --bind-address=127.0.0.1 --secure-port=$PORT \
            --advertise-address=127.0.0.1 --service-cluster-ip-range=10.96.0.0/16 --token-auth-file=tokens.csv \
            --authorization-mode=RBAC --disable-admission-plugins=StorageObjectInUseProtection,ServiceAccount --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key \
            --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=service-account.key \
            --service-account-signing-key-file=service-account.key >apiserver.log 2>&1 &
        apiserver=$!
        cat >/dev/null
        kill -9 $apiserver $etcd
        wait
        rm -rf "$FOLDER"
    "#;
    let mut shell = Command::new("sh")
        .args(["-c", script])
        .envs([("PROGRAM", program.as_os_str()), ("FOLDER", folder.as_os_str())])
        .envs([("PORT", ports[0].to_string()), ("ETCD", ports[1].to_string()), ("PEER", ports[2].to_string())])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lifeline = shell.stdin.take().unwrap();
    Some(Server { port: ports[0], _lifeline: lifeline })
}

/// The administrator's kubeconfig, for programs.
#[allow(dead_code, reason = "not every test starts one")]
pub fn kubeconfig() -> Option<String> {
    Some(kubeconfig_of(server()?.port, ADMIN))
}

fn kubeconfig_of(port: u16, token: &str) -> String {
    format!(
        "{{clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}], \
         users: [{{name: test, user: {{token: {token}}}}}], contexts: [{{name: test, context: {{cluster: test, user: test}}}}], \
         current-context: test}}"
    )
}

async fn connect(port: u16, token: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig_of(port, token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Creates the CRDs from the generated YAML and waits until the kinds are served.
async fn install(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (name, text) in forebay_crds::yaml() {
        let crd: CustomResourceDefinition = serde_yaml::from_str(&text).unwrap();
        match crds.create(&PostParams::default(), &crd).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            result => drop(result.unwrap_or_else(|error| panic!("the API server refuses {name}: {error}"))),
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let established = |crd: &CustomResourceDefinition| {
            let conditions = crd.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Established" && condition.status == "True")
        };
        while !established(&crds.get(crd.metadata.name.as_deref().unwrap()).await.unwrap()) {
            assert!(Instant::now() < deadline, "{name} was not established");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
