//! Mutual TLS between a runtime's nodes and the operator: each runtime has a CA of its own, so that a certificate of another runtime
//! opens nothing. Both sides always show a certificate.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, CipherSuite, ClientConfig, RootCertStore, ServerConfig};
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

/// Why an identity is no good.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The texts are no PEM.
    #[error("the TLS files: {0}; check that they are PEM")]
    Pem(#[from] pem::Error),
    /// The certificates can't be used.
    #[error("the TLS files: {0}; check that key, certificate and CA belong together")]
    Certificates(#[from] rustls::Error),
    /// The CA can't be used.
    #[error("the TLS files: the CA: {0}")]
    Authority(#[from] VerifierBuilderError),
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

    /// For a listener that speaks these protocols, and demands a client certificate of the same CA.
    pub fn listener(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider)).build()?;
        let (chain, key) = self.chain()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// For connections to cache nodes that speak this protocol.
    pub fn connector(&self, protocol: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider)).build()?;
        let (chain, key) = self.chain()?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.ca) {
            roots.add(certificate?)?;
        }
        Ok(Arc::new(roots))
    }

    fn chain(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = CertificateDer::pem_slice_iter(&self.cert).collect::<Result<_, _>>()?;
        Ok((chain, PrivateKeyDer::from_pem_slice(&self.key)?))
    }
}

/// AES-128-GCM first: with the instructions that every server's processor has, nothing is faster.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}
