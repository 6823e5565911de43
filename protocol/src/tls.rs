//! Mutual TLS between a runtime's nodes and the operator: each runtime has a CA of its own, so that a certificate of another runtime
//! opens nothing. Both sides always show a certificate.

use std::path::PathBuf;

use tonic::transport::{Certificate, ClientTlsConfig, Identity as PemIdentity, ServerTlsConfig};

use crate::config::TlsFiles;

/// The name in every cache node's certificate. Nodes are called by address; what counts is the runtime's CA.
pub const NODE_DOMAIN: &str = "node.forebay";

/// The name in the operator's client certificate.
pub const OPERATOR_DOMAIN: &str = "operator.forebay";

/// A certificate, its key, and the CA that peers must be signed by; all PEM.
#[derive(Clone)]
pub struct Identity {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Why an identity can't be had.
#[derive(Debug, thiserror::Error)]
#[error("reading the TLS file {path}: {source}")]
pub struct IdentityError {
    path: PathBuf,
    source: std::io::Error,
}

impl Identity {
    /// From PEM texts.
    pub fn from_pem(ca: impl Into<Vec<u8>>, cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        Self { ca: ca.into(), cert: cert.into(), key: key.into() }
    }

    /// From the files of a `runtime.yaml`.
    pub fn read(files: &TlsFiles) -> Result<Self, IdentityError> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|source| IdentityError { path: path.clone(), source });
        Ok(Self { ca: read(&files.ca)?, cert: read(&files.cert)?, key: read(&files.key)? })
    }

    /// For a server that demands a client certificate of the same CA.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(PemIdentity::from_pem(&self.cert, &self.key))
            .client_ca_root(Certificate::from_pem(&self.ca))
    }

    /// For a client of cache nodes.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(PemIdentity::from_pem(&self.cert, &self.key))
            .domain_name(NODE_DOMAIN)
    }
}
