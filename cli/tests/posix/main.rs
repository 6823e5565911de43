//! The mounted tree as programs find it: an ordinary read-only file system, whatever is in the cache and whoever serves it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attributes;
mod buckets;
mod errors;
mod listing;
mod reading;
mod sharing;
#[path = "../support/mod.rs"]
mod support;

/// More than one chunk, and no whole number of pages.
const LARGE: usize = (9 << 20) + 1234;
