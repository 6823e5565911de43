//! The CSI identity service: name and version. There is no controller: volumes are static, made by the operator.

use forebay_protocol::csi;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::paths::DRIVER;

/// The service.
pub struct IdentityService {
    /// Knows whether the session is there.
    pub broker: Broker,
}

#[tonic::async_trait]
impl csi::identity_server::Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        // After a restart the daemon brings the session back within a moment.
        Ok(Response::new(csi::ProbeResponse { ready: Some(!self.broker.awaits_session()) }))
    }
}
