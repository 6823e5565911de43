//! The plugin as the kubelet meets it: sockets, registration, gRPC.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use forebay_csi::server::{Arguments, run};
use forebay_protocol::csi::volume_capability::access_mode::Mode;
use forebay_protocol::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use forebay_protocol::csi::{self, VolumeCapability, identity_client::IdentityClient, node_client::NodeClient};
use forebay_protocol::layout::FUSE_UID;
use forebay_protocol::registration::registration_client::RegistrationClient;
use forebay_protocol::registration::{InfoRequest, RegistrationStatus};
use support::plugin::{World, run_daemon};
use tonic::Code;
use tonic::transport::Channel;

in_both_modes! {
    the_driver_registers_and_a_volume_goes_through_its_life_over_grpc
}

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

async fn connect(socket: &Path) -> Channel {
    let since = Instant::now();
    loop {
        let channel = tonic::transport::Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        match channel.connect().await {
            Ok(channel) => return channel,
            Err(error) => assert!(since.elapsed() < Duration::from_secs(10), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

async fn the_driver_registers_and_a_volume_goes_through_its_life_over_grpc(mode: Wanted) {
    let mut world = World::new(mode, &[&[("a/b", 5000)], &[("c", 10)]]).await;
    world.write_objects(|number, dataset| {
        if number == 1 {
            dataset["status"] = serde_json::json!({"conditions": [{"type": "Catalogued", "status": "False", "reason": "AccessDenied",
                "message": "s3://b/ refuses the key of Secret training/s3", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        }
    });
    let arguments = Arguments {
        node_name: "node-a".into(),
        kubelet_dir: world.paths.kubelet_dir.clone(),
        run_dir: world.paths.run_dir.clone(),
        cache_roots: world.paths.cache_roots.clone(),
        memory_root: world.paths.memory_root.clone(),
        daemon_uid: FUSE_UID,
        mount_mode: mode,
        watch_opens: 3,
        listen: None,
        objects: Some(world.scratch.path().join("objects.json")),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let plugin = tokio::spawn(run(arguments, async {
        let _ = stopped.await;
    }));
    world.start_daemon();

    let mut registration = RegistrationClient::new(connect(&world.paths.registration_socket()).await);
    let info = registration.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.forebay.dev"));
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    registration.notify_registration_status(status).await.unwrap();

    let channel = connect(Path::new(&info.endpoint)).await;
    let mut identity = IdentityClient::new(channel.clone());
    let name = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner().name;
    assert_eq!(name, "csi.forebay.dev");
    let mut node = NodeClient::new(channel);
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "node-a");

    let stage = |number: usize, mode| csi::NodeStageVolumeRequest {
        volume_id: world.datasets[number].uid.clone(),
        staging_target_path: world.staging(number).display().to_string(),
        volume_capability: Some(capability(mode)),
        volume_context: World::attributes(number),
        ..Default::default()
    };
    let refused = node.node_stage_volume(stage(0, Mode::MultiNodeMultiWriter)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("read-only"), "{refused}");
    let nothing = node.node_stage_volume(csi::NodeStageVolumeRequest::default()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);

    node.node_stage_volume(stage(0, Mode::MultiNodeReaderOnly)).await.unwrap();
    let target = world.scratch.path().join("pods/1/mount");
    let publish = csi::NodePublishVolumeRequest {
        volume_id: world.datasets[0].uid.clone(),
        staging_target_path: world.staging(0).display().to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability(Mode::MultiNodeReaderOnly)),
        readonly: true,
        ..Default::default()
    };
    node.node_publish_volume(publish.clone()).await.unwrap();
    let file = target.join("a/b");
    let bytes = tokio::task::spawn_blocking(move || std::fs::read(file)).await.unwrap().unwrap();
    assert!(bytes == world.datasets[0].files[0].bytes(0, 5000));
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: world.datasets[0].uid.clone(),
        volume_path: target.display().to_string(),
        ..Default::default()
    };
    let stats = node.node_get_volume_stats(stats).await.unwrap().into_inner();
    assert_eq!(stats.usage.iter().map(|usage| usage.total).collect::<Vec<_>>(), [5000, 1]);
    assert!(!stats.volume_condition.unwrap().abnormal);

    // Takes as long as staging waits for a catalog.
    let waiting = node.node_stage_volume(stage(1, Mode::MultiNodeReaderOnly)).await.unwrap_err();
    assert_eq!(waiting.code(), Code::Unavailable);
    assert_eq!(
        waiting.message(),
        "Dataset training/data-1 has no version yet: s3://b/ refuses the key of Secret training/s3 (AccessDenied)"
    );

    let unpublish =
        csi::NodeUnpublishVolumeRequest { volume_id: publish.volume_id.clone(), target_path: publish.target_path };
    node.node_unpublish_volume(unpublish).await.unwrap();
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: publish.volume_id,
        staging_target_path: publish.staging_target_path,
    };
    node.node_unstage_volume(unstage).await.unwrap();
    assert!(world.scratch.mounts().is_empty());
    let _ = stop.send(());
    tokio::time::timeout(Duration::from_secs(10), plugin).await.unwrap().unwrap().unwrap();
    assert!(!world.paths.registration_socket().exists());
}
