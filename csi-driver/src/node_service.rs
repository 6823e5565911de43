//! The CSI node service: checks a request's form, calls [`crate::node::Node`], and says its errors as gRPC statuses.

use std::path::Path;

use forebay_protocol::csi::node_service_capability::{self, rpc};
use forebay_protocol::csi::volume_capability::{self, access_mode::Mode};
use forebay_protocol::csi::volume_usage::Unit;
use forebay_protocol::csi::{self, VolumeCapability, VolumeCondition, VolumeUsage};
use tonic::{Code, Request, Response, Status};

use crate::attributes;
use crate::datasets::ResolveError;
use crate::metrics::Metrics;
use crate::node::{Node, NodeError};

/// The service.
pub struct NodeService {
    node: Node,
    metrics: Metrics,
}

impl NodeService {
    /// Serves this node, and counts what is done.
    pub fn new(node: Node, metrics: Metrics) -> Self {
        Self { node, metrics }
    }

    /// Counts a call, and how long it took, in the end.
    async fn measured<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let running = self.metrics.begin(operation);
        let result = call.await;
        running.end(result.as_ref().err().map_or(Code::Ok, Status::code));
        result.map(Response::new)
    }
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        match error {
            NodeError::Invalid(_) | NodeError::Kernel(_) | NodeError::Resolve(ResolveError::Wrong(_)) => {
                Self::failed_precondition(message)
            }
            NodeError::NotFound(_) => Self::not_found(message),
            NodeError::Resolve(ResolveError::Denied(_)) => Self::permission_denied(message),
            NodeError::NotYet(_)
            | NodeError::NotServed(_)
            | NodeError::Resolve(
                ResolveError::NotYet(_) | ResolveError::ApiServer { .. } | ResolveError::File { .. },
            ) => Self::unavailable(message),
            NodeError::Mount(_) | NodeError::File { .. } => Self::internal(message),
        }
    }
}

/// The field's value, or INVALID_ARGUMENT.
fn required<'a>(value: &'a str, field: &str) -> Result<&'a str, Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field} is missing"))) } else { Ok(value) }
}

/// Refuses what a read-only tree can't be.
fn check_capability(capability: Option<&VolumeCapability>, inline: bool) -> Result<(), Status> {
    let capability = capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
    match &capability.access_type {
        Some(volume_capability::AccessType::Mount(mount)) => {
            // The others would have to be applied; these always hold.
            let unknown = mount.mount_flags.iter().find(|flag| !["ro", "nosuid", "nodev"].contains(&flag.as_str()));
            if let Some(flag) = unknown {
                return Err(Status::invalid_argument(format!("mount option {flag} is not supported: leave it out")));
            }
        }
        _ => return Err(Status::invalid_argument("a Dataset is a file system: volumeMode Block is not supported")),
    }
    let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, csi::volume_capability::AccessMode::mode);
    match mode {
        Mode::MultiNodeReaderOnly | Mode::SingleNodeReaderOnly => Ok(()),
        // The kubelet has no other for an inline volume, whose user chooses none.
        Mode::SingleNodeWriter if inline => Ok(()),
        other => Err(Status::invalid_argument(format!(
            "a Dataset is read-only: access mode {} is not supported, use ReadOnlyMany",
            other.as_str_name()
        ))),
    }
}

impl NodeService {
    async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<csi::NodeStageVolumeResponse, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let path = required(&request.staging_target_path, "staging_target_path")?;
        check_capability(request.volume_capability.as_ref(), false)?;
        let staged = self.node.stage(id, request.volume_context, Path::new(path)).await;
        if let Err(error) = &staged {
            tracing::warn!(volume = id, %error, "staging failed");
        }
        staged?;
        Ok(csi::NodeStageVolumeResponse {})
    }

    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> Result<csi::NodeUnstageVolumeResponse, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let path = required(&request.staging_target_path, "staging_target_path")?;
        self.node.unstage(id, Path::new(path)).await?;
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<csi::NodePublishVolumeResponse, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let target = required(&request.target_path, "target_path")?;
        let inline = attributes::is_inline(&request.volume_context);
        check_capability(request.volume_capability.as_ref(), inline)?;
        let target = Path::new(target);
        let published = if inline {
            self.node.publish_inline(id, request.volume_context, target).await
        } else {
            let staging_path = request.staging_target_path.as_str();
            if staging_path.is_empty() {
                return Err(Status::failed_precondition("staging_target_path is missing"));
            }
            let pod = attributes::pod(&request.volume_context);
            self.node.publish(id, Path::new(staging_path), target, pod).await
        };
        if let Err(error) = &published {
            tracing::warn!(volume = id, %error, "publishing failed");
        }
        published?;
        Ok(csi::NodePublishVolumeResponse {})
    }

    async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
    ) -> Result<csi::NodeUnpublishVolumeResponse, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let target = required(&request.target_path, "target_path")?;
        self.node.unpublish(id, Path::new(target)).await?;
        Ok(csi::NodeUnpublishVolumeResponse {})
    }
}

#[tonic::async_trait]
impl csi::node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        self.measured("stage", self.stage(request.into_inner())).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        self.measured("unstage", self.unstage(request.into_inner())).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        self.measured("publish", self.publish(request.into_inner())).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        self.measured("unpublish", self.unpublish(request.into_inner())).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = required(&request.volume_id, "volume_id")?;
        let path = required(&request.volume_path, "volume_path")?;
        let stats = self.node.stats(id, Path::new(path))?;
        let usage = |unit: Unit, total: u64| VolumeUsage {
            total: total as i64,
            used: total as i64,
            available: 0,
            unit: unit.into(),
        };
        let condition = VolumeCondition {
            abnormal: stats.problem.is_some(),
            message: stats.problem.unwrap_or_else(|| "the volume is mounted and served".to_owned()),
        };
        Ok(Response::new(csi::NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Bytes, stats.bytes), usage(Unit::Inodes, stats.files)],
            volume_condition: Some(condition),
        }))
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("a Dataset's volume has the size of its content"))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let kinds = [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition];
        let capabilities = kinds.into_iter().map(|kind| csi::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(node_service_capability::Rpc { r#type: kind.into() })),
        });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.collect() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let info = csi::NodeGetInfoResponse { node_id: self.node.name().to_owned(), ..Default::default() };
        Ok(Response::new(info))
    }
}
