//! `forebay status` as its user has it, where there is no cluster. With one, `cargo xtask demo` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::Scratch;
use support::program::{forebay, run};

#[test]
fn without_a_cluster_to_ask_it_says_so_once_and_what_to_do() {
    let scratch = Scratch::on_disk();
    let missing = scratch.path().join("config");
    let (code, said) = run(forebay().arg("status").env("KUBECONFIG", &missing).env_remove("KUBERNETES_SERVICE_HOST"));
    assert_eq!(code, 1, "{said}");
    assert!(said.starts_with("forebay: there is no cluster to ask; set KUBECONFIG"), "{said}");
    assert!(said.contains(&missing.display().to_string()), "{said}");
    assert_eq!(said.matches("No such file or directory").count(), 1, "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
