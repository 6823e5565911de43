//! Where a source's credentials come from: the Secret that it names, which must be in the file; without one, the AWS variables.

use anyhow::{Context as _, bail};
use forebay_protocol::config::Credentials;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;

const KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";

/// The credentials in the environment, if there are any.
pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Credentials>> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    match (variable(KEY_ID), variable(SECRET_KEY)) {
        (None, None) => Ok(None),
        (Some(access_key_id), Some(secret_access_key)) => {
            Ok(Some(Credentials { access_key_id, secret_access_key, session_token: variable(TOKEN) }))
        }
        (Some(_), None) => bail!("{KEY_ID} is set and {SECRET_KEY} is not: set both or neither"),
        (None, Some(_)) => bail!("{SECRET_KEY} is set and {KEY_ID} is not: set both or neither"),
    }
}

/// The credentials in the Secret `name`, for Dataset `home/dataset`.
pub fn from_secret(home: &str, dataset: &str, secrets: &[Secret], name: &str) -> anyhow::Result<Credentials> {
    let at_home = |secret: &&Secret| secret.metadata.namespace.as_deref().is_none_or(|namespace| namespace == home);
    let Some(secret) = secrets.iter().filter(at_home).find(|secret| secret.name_any() == name) else {
        bail!(
            "Secret {home}/{name}, which Dataset {home}/{dataset} refers to, is not in the file: add it as a document of kind Secret, or \
             take secretRef out and set {KEY_ID} and {SECRET_KEY}"
        );
    };
    let wanted = |key: &str| {
        value(secret, key)?.with_context(|| format!("Secret {home}/{name} has no key {key}: add it under stringData"))
    };
    Ok(Credentials {
        access_key_id: wanted(KEY_ID)?,
        secret_access_key: wanted(SECRET_KEY)?,
        session_token: value(secret, TOKEN)?,
    })
}

/// What a Secret has under a key; `stringData` goes before `data`, as in the API server.
fn value(secret: &Secret, key: &str) -> anyhow::Result<Option<String>> {
    if let Some(text) = secret.string_data.as_ref().and_then(|data| data.get(key)) {
        return Ok(Some(text.clone()));
    }
    let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
    let text = String::from_utf8(bytes.0.clone());
    // The bytes themselves must not be shown.
    text.map(Some).map_err(|_| anyhow::anyhow!("Secret {}: the value of {key} is not text", secret.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(secret: &str) -> anyhow::Result<Credentials> {
        let secret = serde_yaml::from_str(&format!("{{apiVersion: v1, kind: Secret, {secret}}}")).unwrap();
        from_secret("default", "images", &[secret], "cloud")
    }

    #[test]
    fn a_secret_may_be_plain_or_base64() {
        let found = find(
            "metadata: {name: cloud}, stringData: {AWS_ACCESS_KEY_ID: me}, data: {AWS_SECRET_ACCESS_KEY: aGlkZGVu}",
        );
        let found = found.unwrap();
        assert_eq!((found.access_key_id.as_str(), found.secret_access_key.as_str()), ("me", "hidden"));
    }

    #[test]
    fn a_missing_secret_or_key_is_named_with_the_next_step() {
        let error = find("metadata: {name: cloud, namespace: other}").unwrap_err().to_string();
        assert!(error.contains("Secret default/cloud") && error.contains("Dataset default/images"), "{error}");
        let error = find("metadata: {name: cloud}, stringData: {AWS_ACCESS_KEY_ID: me}").unwrap_err().to_string();
        assert!(error.contains("no key AWS_SECRET_ACCESS_KEY"), "{error}");
    }

    #[test]
    fn half_of_the_environment_is_refused() {
        assert_eq!(from_environment(|_| None).unwrap(), None);
        assert_eq!(from_environment(|_| Some(String::new())).unwrap(), None);
        let both = from_environment(|name| (name != TOKEN).then(|| name.to_owned())).unwrap().unwrap();
        assert_eq!((both.secret_access_key.as_str(), both.session_token), (SECRET_KEY, None));
        assert!(from_environment(|name| (name == KEY_ID).then(|| "a".to_owned())).is_err());
    }
}
