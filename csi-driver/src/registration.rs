//! Tells the kubelet, which watches its `plugins_registry` folder, where the driver's socket is.

use std::path::PathBuf;

use forebay_protocol::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};
use tonic::{Request, Response, Status};

use crate::paths::DRIVER;

/// Any 1.x that the kubelet knows: it compares the major version.
const CSI_VERSION: &str = "1.0.0";

/// The service.
pub struct RegistrationService {
    /// The CSI socket, as the kubelet sees it.
    pub csi_socket: PathBuf,
}

#[tonic::async_trait]
impl registration_server::Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.csi_socket.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("the kubelet has registered the driver");
        } else {
            tracing::error!(error = status.error, "the kubelet refuses the driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
