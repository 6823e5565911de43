//! The FUSE side of a mount: the kernel's ABI, the handshake that the holder of /dev/fuse makes, the session loop, the file system of
//! objects by id and of catalogs' trees, and the client of the local cache node. Knows nothing of Kubernetes.
//!
//! In one process (`forebay mount`): [`handshake::open_device`], mount, [`handshake::answer_init`], [`Registry::mount`], [`Server::start`].
//! Apart (Kubernetes): the CSI plugin does the first three, and the daemon, [`daemon::run`], the rest.

pub mod abi;
mod backing;
mod counters;
pub mod daemon;
pub mod handshake;
pub mod keeper;
mod lease;
mod listen;
mod listing;
mod node_client;
pub mod objects;
pub mod passthrough;
mod ranges;
mod registry;
pub mod request_log;
pub mod session;
mod session_files;
mod slow;
pub mod status;
pub mod supervise;
mod tree;
mod wake;

pub use lease::NODE_PATIENCE;
pub use node_client::NodeClient;
pub use passthrough::Passthrough;
pub use registry::{Found, MountedCatalog, NotFound, Registry};
pub use session::Server;
pub use session_files::SessionFiles;
pub use tree::{Tree, folder_name as tree_folder};
