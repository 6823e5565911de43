//! The soak, for a short time: a longer one is `cargo xtask soak`.
#![allow(clippy::unwrap_used)] // clippy.toml's permission is for `#[test]` functions alone

use forebay_bench::soak::{self, Options};
use forebay_e2e::paths;

#[tokio::test(flavor = "multi_thread")]
async fn while_nodes_are_killed_damaged_and_reweighted_every_byte_that_is_read_is_right() {
    let required = std::env::var_os("FOREBAY_REQUIRE_ALL").is_some();
    if !required && !paths::bin().join("versitygw").exists() {
        eprintln!("SKIPPED: versitygw is not there; `cargo xtask test` builds it");
        return;
    }
    let seed = std::env::var("FOREBAY_SEED").ok().map(|seed| seed.parse().unwrap());
    let passed = soak::run(&Options { minutes: 0, seconds: Some(20), seed }).await.unwrap();
    eprintln!("{passed}");
    let faults: u64 = passed.faults.values().sum();
    assert!(passed.reads > 200 && faults > 5, "{passed}");
}
