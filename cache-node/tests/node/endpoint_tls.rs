//! A source whose TLS is no good: each way is named, with what to do.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls;

use crate::common::faults::{Fault, Faults};
use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, free_address, scratch};

const SMALL: usize = 1000;

/// A certificate for `host`, valid or expired, and its issuer's in PEM.
fn certificate(host: &str, expired: bool) -> (rustls::ServerConfig, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // Issuers are told apart by name.
    let name = format!("issuer {:?}", KeyPair::generate().unwrap().public_key_raw());
    params.distinguished_name.push(rcgen::DnType::CommonName, &name[..60]);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    if expired {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    }
    let cert = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    (tls, issuer.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_tls_is_no_good_is_named_with_what_to_do() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put_raw("f", &content(1, SMALL));
    let folder = scratch();
    let (good, good_issuer) = certificate("127.0.0.1", false);
    let (expired, expired_issuer) = certificate("127.0.0.1", true);
    let (other_host, other_issuer) = certificate("elsewhere.example", false);
    let (unknown, _) = certificate("127.0.0.1", false);
    let trusted: PathBuf = folder.path().join("trusted.pem");
    std::fs::write(&trusted, good_issuer + &expired_issuer + &other_issuer).unwrap();

    let cases = [
        (Faults::start_tls(gateway.address, good).await, None),
        (Faults::start_tls(gateway.address, expired).await, Some("renew it")),
        (Faults::start_tls(gateway.address, other_host).await, Some("for another host")),
        (Faults::start_tls(gateway.address, unknown).await, Some("install its issuer's certificate")),
        (Faults::start(gateway.address, |_| Fault::None).await, Some("does not speak TLS")),
    ];
    let datasets = cases.iter().enumerate().map(|(n, (proxy, _))| {
        let mut source = Gateway::source_at(proxy.address, "");
        source.endpoint = Some(format!("https://{}", proxy.address));
        dataset(&format!("d{n}"), source)
    });
    let (datasets, address) = (datasets.collect(), free_address([127, 0, 0, 2]));
    let environment = vec![("SSL_CERT_FILE", trusted)];
    let node = NodeProcess::start_with(environment, |folder| config(folder, address, &[], datasets)).await;
    for (n, (proxy, advice)) in cases.iter().enumerate() {
        let uid = format!("d{n}");
        match advice {
            None => {
                let reader = node.reader(&uid).await;
                assert!(reader.read(&reader.files()["f"], 1 << 20).await.unwrap() == content(1, SMALL));
            }
            Some(advice) => {
                let message = node.wait_dataset("a problem", &uid, |dataset| {
                    let problem = dataset.catalog_problem.clone()?;
                    (problem.reason == "EndpointUnreachable").then_some(problem.message)
                });
                let message = message.await;
                assert!(message.contains(advice) && message.contains(&proxy.address.to_string()), "{message}");
            }
        }
    }
}
