//! Figures and endurance, from real processes: `cargo xtask bench cache` and `bench mount` measure what `docs/cache.md` and `docs/mount.md` promise
//! beside the limits of the same machine in the same run; `cargo xtask soak` breaks things at random and compares every byte that is read. Knows the
//! programs, their config and their interfaces, nothing of their insides.

pub mod args;
pub mod cluster;
pub mod machine;
pub mod measure;
pub mod mounted;
pub mod programs;
pub mod report;
pub mod results;
pub mod run_folder;
pub mod sample;
pub mod soak;
pub mod wait;
