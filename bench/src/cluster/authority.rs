//! A runtime's certificate authority, as the operator makes one.

use std::path::Path;

use anyhow::{Context as _, Result};
use forebay_protocol::config::TlsFiles;
use forebay_protocol::tls::{Identity, NODE_DOMAIN};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// An authority that lives as long as the run.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Issued {
    ca: String,
    cert: String,
    key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().context("making the authority's key")?;
        Ok(Self(CertifiedIssuer::self_signed(params, key).context("making the authority's certificate")?))
    }

    fn issue(&self) -> Result<Issued> {
        let key = KeyPair::generate().context("making a node's key")?;
        let params = CertificateParams::new(vec![NODE_DOMAIN.to_owned()])?;
        let cert = params.signed_by(&key, &self.0).context("making a node's certificate")?;
        Ok(Issued { ca: self.0.pem(), cert: cert.pem(), key: key.serialize_pem() })
    }

    /// An identity for a client of the nodes.
    pub fn identity(&self) -> Result<Identity> {
        let Issued { ca, cert, key } = self.issue()?;
        Ok(Identity::from_pem(ca, cert, key))
    }

    /// Writes an identity for a node beside its `runtime.yaml`.
    pub fn write(&self, folder: &Path) -> Result<TlsFiles> {
        let Issued { ca, cert, key } = self.issue()?;
        for (name, text) in [("ca.pem", ca), ("cert.pem", cert), ("key.pem", key)] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(TlsFiles { ca: "ca.pem".into(), cert: "cert.pem".into(), key: "key.pem".into() })
    }
}
