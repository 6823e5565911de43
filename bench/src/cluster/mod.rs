//! Real parts for measurements and for the soak: an S3 server, nodes as processes, a reader of their local sockets, certificates, and a
//! network with lines of a given width. Each is gone when its value is.

pub mod authority;
pub mod content;
pub mod counting_proxy;
pub mod node;
pub mod reader;
pub mod s3;
pub mod shaped_network;
