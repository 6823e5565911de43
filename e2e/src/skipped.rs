//! Tests that can't run here: elsewhere than on an old kernel that is a mistake of the setup, and fails them.

use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;

/// Set by `cargo xtask oldkernel`: the file that is told of each test that the kernel has too little for.
pub const LIST: &str = "FOREBAY_SKIPPED";

/// Set by `cargo xtask test`: everything is set up, so that a test which can't run fails.
pub const REQUIRE_ALL: &str = "FOREBAY_REQUIRE_ALL";

/// The calling test can't run on this kernel. `cargo xtask oldkernel` counts that as skipped; elsewhere nothing may be missing.
///
/// # Panics
///
/// Where no test may be skipped.
pub fn kernel_lacks(reason: impl Display) {
    eprintln!("skipped: {reason}");
    let Some(list) = std::env::var_os(LIST) else {
        assert!(std::env::var_os(REQUIRE_ALL).is_none(), "no test may be skipped");
        return;
    };
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let told =
        File::options().append(true).create(true).open(list).and_then(|mut list| writeln!(list, "{test}: {reason}"));
    assert!(told.is_ok(), "the skipped test is not counted: {told:?}");
}
