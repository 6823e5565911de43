//! The plugin as a process of its own, which can be killed, and the kubelet's calls to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_protocol::csi::volume_capability::access_mode::Mode;
use forebay_protocol::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use forebay_protocol::csi::{self, VolumeCapability, identity_client::IdentityClient, node_client::NodeClient};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::plugin::World;

/// A running plugin; killed when it is dropped.
pub struct Plugin {
    child: Child,
    socket: PathBuf,
}

impl Plugin {
    /// Starts it; it need not serve yet.
    pub fn start(world: &World) -> Self {
        Self::spawn(Self::command(world).arg("--objects").arg(world.objects_file()), world)
    }

    /// Starts it with a command that has been added to.
    pub fn spawn(command: &mut Command, world: &World) -> Self {
        Self { child: command.spawn().unwrap(), socket: world.paths.csi_socket() }
    }

    /// The command that starts it, but for where it reads Datasets.
    pub fn command(world: &World) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-csi"));
        command.args(["--node-name", "node-a", "--mount-mode", world.mode.argument()]);
        command.arg("--kubelet-dir").arg(&world.paths.kubelet_dir).arg("--run-dir").arg(&world.paths.run_dir);
        for root in &world.paths.cache_roots {
            command.arg("--cache-root").arg(root);
        }
        command.env("RUST_LOG", "error").stdout(Stdio::null());
        command
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client, once it serves.
    pub async fn client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.connect().await)
    }

    /// Waits until it has the session, if there is one.
    pub async fn has_the_session(&self) {
        let mut identity = IdentityClient::new(self.connect().await);
        let since = Instant::now();
        while identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready != Some(true) {
            assert!(since.elapsed() < Duration::from_secs(30), "the daemon does not bring the session");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn connect(&self) -> Channel {
        let since = Instant::now();
        loop {
            let endpoint = Endpoint::try_from(format!("unix://{}", self.socket.display())).unwrap();
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(error) => assert!(since.elapsed() < Duration::from_secs(30), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stages a dataset as the kubelet does.
    pub async fn stage(&self, world: &World, number: usize) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: world.datasets[number].uid.clone(),
            staging_target_path: world.staging(number).display().to_string(),
            volume_capability: Some(capability()),
            volume_context: World::attributes(number),
            ..Default::default()
        };
        self.client().await.node_stage_volume(request).await.map(drop)
    }

    /// Publishes a staged dataset.
    pub async fn publish(&self, world: &World, number: usize, target: &Path) -> Result<(), Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: world.datasets[number].uid.clone(),
            staging_target_path: world.staging(number).display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: World::attributes(number),
            readonly: true,
            ..Default::default()
        };
        self.client().await.node_publish_volume(request).await.map(drop)
    }

    /// Waits for its end; none when it has not ended in time.
    pub fn ended(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let since = Instant::now();
        while since.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kubelet asks for.
pub fn capability() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::MultiNodeReaderOnly.into() }),
    }
}
