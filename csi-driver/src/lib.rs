//! The CSI driver `csi.forebay.dev`: shows Datasets to pods. Its privileged work is in [`mount`], which `forebay mount` uses too; the session of
//! the object FUSE is held by [`broker`] and served by the unprivileged `forebay-fuse`.

mod attributes;
mod authority;
pub mod broker;
pub mod datasets;
mod events;
mod health;
mod identity_service;
pub mod metrics;
pub mod mode;
pub mod mount;
pub mod node;
mod node_service;
pub mod opens;
pub mod paths;
mod registrar;
mod registration;
pub mod server;
pub mod space;
mod volumes;
