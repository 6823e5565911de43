//! What Forebay's programs say to each other: gRPC and socket messages, the cache node's configuration file, the layout of a cache folder,
//! the frames by which chunks travel, TLS identities, the descriptor-passing socket, and the log format. No behaviour of its own.

pub mod blocking;
pub mod config;
pub mod end;
pub mod fdsocket;
pub mod layout;
pub mod log;
pub mod mount_mode;
pub mod tls;
pub mod transfer;

/// The cache node's gRPC API.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod node {
    tonic::include_proto!("forebay.node.v1");

    /// Reason of a node's `catalog_problem` while another node makes the catalog: a consequence, never the cause.
    pub const WAITING_FOR_CATALOG: &str = "WaitingForCatalog";
}

/// The socket between the FUSE daemon and the cache node of its machine.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod local {
    tonic::include_proto!("forebay.local.v1");
}

/// The socket between the CSI plugin and the FUSE daemon.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod broker {
    tonic::include_proto!("forebay.broker.v1");
}

/// The Container Storage Interface, version 1.11.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The kubelet's plugin registration.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
