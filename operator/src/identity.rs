//! TLS identities: a CA of its own for each runtime, one certificate for its cache nodes and one for the operator as their client. They are kept
//! in a Secret of the runtime's namespace and renewed when less than a third of their life remains.

use std::collections::BTreeMap;

use forebay_protocol::tls::{Identity, NODE_DOMAIN, OPERATOR_DOMAIN};
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Life of a CA. Its end would need all nodes to restart at once, so it is far.
const CA_DAYS: i64 = 3650;
/// Life of the certificates.
const LEAF_DAYS: i64 = 365;

/// Certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
#[error("making the runtime's certificates: {0}")]
pub struct IdentityError(#[from] rcgen::Error);

/// A certificate and its key, PEM, and when to renew it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    cert: String,
    key: String,
    renew_after: Timestamp,
}

/// All identities of one runtime.
#[derive(Clone, PartialEq, Eq)]
pub struct RuntimeIdentity {
    ca: Pair,
    node: Pair,
    operator: Pair,
}

impl RuntimeIdentity {
    /// From a Secret's data; `None` when it is not whole.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text = |name: String| data.get(&name).and_then(|value| String::from_utf8(value.0.clone()).ok());
        let pair = |name: &str| {
            Some(Pair {
                cert: text(format!("{name}.crt"))?,
                key: text(format!("{name}.key"))?,
                renew_after: text(format!("{name}.renew-after"))?.parse().ok()?,
            })
        };
        Some(Self { ca: pair("ca")?, node: pair("node")?, operator: pair("operator")? })
    }

    /// As a Secret's data.
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        [("ca", &self.ca), ("node", &self.node), ("operator", &self.operator)]
            .into_iter()
            .flat_map(|(name, pair)| {
                let entry = |kind: &str, text: &str| (format!("{name}.{kind}"), ByteString(text.as_bytes().to_vec()));
                [entry("crt", &pair.cert), entry("key", &pair.key), entry("renew-after", &pair.renew_after.to_string())]
            })
            .collect()
    }

    /// A new CA and certificates.
    pub fn generate(runtime: &str, now: Timestamp) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = common_name(&format!("forebay {runtime}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let renew_after = set_life(&mut params, CA_DAYS, now);
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?.pem();
        let ca = Pair { cert, key: key.serialize_pem(), renew_after };
        let (node, operator) = (issue(&ca, NODE_DOMAIN, now)?, issue(&ca, OPERATOR_DOMAIN, now)?);
        Ok(Self { ca, node, operator })
    }

    /// These, with what is near its end made anew.
    pub fn renewed(mut self, runtime: &str, now: Timestamp) -> Result<Self, IdentityError> {
        if now > self.ca.renew_after {
            return Self::generate(runtime, now);
        }
        if now > self.node.renew_after {
            self.node = issue(&self.ca, NODE_DOMAIN, now)?;
        }
        if now > self.operator.renew_after {
            self.operator = issue(&self.ca, OPERATOR_DOMAIN, now)?;
        }
        Ok(self)
    }

    /// What the operator calls nodes with.
    pub fn operator(&self) -> Identity {
        Identity::from_pem(self.ca.cert.as_str(), self.operator.cert.as_str(), self.operator.key.as_str())
    }

    /// The nodes' CA, certificate and key, PEM.
    pub fn node_files(&self) -> [&str; 3] {
        [&self.ca.cert, &self.node.cert, &self.node.key]
    }

    /// Differs when the operator's identity does.
    pub fn fingerprint(&self) -> blake3::Hash {
        blake3::hash(format!("{}{}", self.ca.cert, self.operator.cert).as_bytes())
    }
}

fn issue(ca: &Pair, domain: &str, now: Timestamp) -> Result<Pair, IdentityError> {
    let mut params = CertificateParams::new(vec![domain.to_owned()])?;
    params.distinguished_name = common_name(domain);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Nodes call each other too.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let renew_after = set_life(&mut params, LEAF_DAYS, now);
    let issuer = Issuer::from_ca_cert_pem(&ca.cert, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair { cert, key: key.serialize_pem(), renew_after })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    distinguished
}

/// Valid from yesterday, for clocks that are behind; returns when two thirds are over.
fn set_life(params: &mut CertificateParams, days: i64, now: Timestamp) -> Timestamp {
    let day = |offset: i64| now.to_zoned(TimeZone::UTC).date().saturating_add(offset.days());
    let date = |offset: i64| {
        let day = day(offset);
        date_time_ymd(i32::from(day.year()), day.month() as u8, day.day() as u8)
    };
    params.not_before = date(-1);
    params.not_after = date(days);
    now.saturating_add((days * 24 * 2 / 3).hours()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_their_secret() {
        let identity = RuntimeIdentity::generate("forebay/pool", Timestamp::now()).unwrap();
        assert!(RuntimeIdentity::from_data(&identity.to_data()) == Some(identity.clone()));
        let mut data = identity.to_data();
        data.remove("node.key");
        assert!(RuntimeIdentity::from_data(&data).is_none());
    }

    #[test]
    fn certificates_are_renewed_in_their_last_third_under_the_same_ca() {
        let now = Timestamp::now();
        let identity = RuntimeIdentity::generate("forebay/pool", now).unwrap();
        let after = |days: i64| identity.clone().renewed("forebay/pool", now + (days * 24).hours()).unwrap();
        assert!(after(200) == identity);
        let renewed = after(300);
        assert!(renewed.ca == identity.ca && renewed.node != identity.node && renewed.operator != identity.operator);
        assert!(after(3000).ca != identity.ca);
    }

    #[test]
    fn the_identity_makes_a_tls_server_and_client() {
        let identity = RuntimeIdentity::generate("forebay/pool", Timestamp::now()).unwrap();
        let [ca, cert, key] = identity.node_files();
        let _ = Identity::from_pem(ca, cert, key).server();
        let _ = identity.operator().client();
    }
}
