//! Leader election by a Lease, as Kubernetes' own components do it: at most one operator writes at a time, which the order of the cache nodes'
//! configurations depends on. Expiry is judged by the local clock from when a renewal was first seen, so clocks need not agree.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};

use crate::problem::found;

/// A holder that has not renewed for this long is taken to be dead.
const LIFE: Duration = Duration::from_secs(15);
/// How often the holder renews.
const RENEW: Duration = Duration::from_secs(4);
/// A holder that could not renew for this long stops, well before another may take over.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How often others look.
const RETRY: Duration = Duration::from_secs(2);

/// The Lease was lost or could not be renewed.
#[derive(Debug, thiserror::Error)]
#[error("the Lease {name} is lost: {cause}")]
pub struct Lost {
    name: String,
    cause: String,
}

/// The operator's Lease, seen by one candidate.
pub struct Lease {
    api: Api<coordination::Lease>,
    identity: String,
    /// The resource version last seen, and since when.
    seen: Mutex<Option<(String, Instant)>>,
}

impl Lease {
    /// The Lease of the operators in `namespace`, for the candidate `identity`.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), identity: identity.to_owned(), seen: Mutex::new(None) }
    }

    /// Waits until this candidate holds the Lease.
    pub async fn acquire(&self) {
        loop {
            match self.attempt().await {
                Ok(None) => return,
                Ok(Some(holder)) => tracing::info!(holder, "waiting for the Lease"),
                Err(error) => tracing::warn!(%error, "asking for the Lease"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the Lease; returns when that has failed for too long or another holds it.
    pub async fn keep(&self) -> Lost {
        let lost = |cause: String| Lost { name: crate::NAME.to_owned(), cause };
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW).await;
            match tokio::time::timeout(RENEW, self.attempt()).await {
                Ok(Ok(None)) => renewed = Instant::now(),
                Ok(Ok(Some(holder))) => return lost(format!("{holder} holds it")),
                Ok(Err(error)) if renewed.elapsed() > GIVE_UP => return lost(error.to_string()),
                Err(_) if renewed.elapsed() > GIVE_UP => return lost("the API server does not answer".to_owned()),
                Ok(Err(error)) => tracing::warn!(%error, "renewing the Lease"),
                Err(_) => tracing::warn!("renewing the Lease: the API server does not answer"),
            }
        }
    }

    /// Lets go, so that the next operator need not wait for the Lease to expire.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = found(self.api.get(crate::NAME).await) else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        else {
            return;
        };
        spec.holder_identity = None;
        if let Err(error) = self.api.replace(crate::NAME, &PostParams::default(), &lease).await {
            tracing::warn!(%error, "releasing the Lease");
        }
    }

    /// Takes or renews the Lease; the holder's name when it is another.
    async fn attempt(&self) -> Result<Option<String>, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = found(self.api.get(crate::NAME).await)? else {
            let lease = coordination::Lease {
                metadata: ObjectMeta { name: Some(crate::NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.spec(now, 0)),
            };
            self.api.create(&PostParams::default(), &lease).await?;
            return Ok(None);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let mine = holder == self.identity;
        if !mine && !holder.is_empty() && !self.expired(&lease.resource_version().unwrap_or_default()) {
            return Ok(Some(holder));
        }
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(!mine);
        let mut renewal = self.spec(now, transitions);
        if mine {
            renewal.acquire_time = spec.acquire_time;
        }
        lease.spec = Some(renewal);
        // The resource version makes this fail when another was faster.
        self.api.replace(crate::NAME, &PostParams::default(), &lease).await?;
        Ok(None)
    }

    fn spec(&self, now: MicroTime, transitions: i32) -> coordination::LeaseSpec {
        coordination::LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LIFE.as_secs() as i32),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..coordination::LeaseSpec::default()
        }
    }

    fn expired(&self, version: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match seen.as_ref() {
            Some((last, since)) if last == version => since.elapsed() > LIFE,
            _ => {
                *seen = Some((version.to_owned(), Instant::now()));
                false
            }
        }
    }
}
