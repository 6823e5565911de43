//! The API of Forebay, group `forebay.dev/v1alpha1`: the types, the rules the API server checks them by (CEL), the generated manifests, and
//! the parsers of their quantities, durations and modes. Types hold what the user wrote; turning it into something that can't be wrong is
//! left to the operator's `validate`.

mod cache_runtime;
mod common;
mod dataset;
mod duration;
mod generate;
mod manifest;
mod mode;
mod preload;
mod quantity;
mod reference;

pub use cache_runtime::*;
pub use common::*;
pub use dataset::*;
pub use duration::{DurationError, GoDuration};
pub use generate::{generated, write_generated, yaml};
pub use manifest::{Manifest, ManifestError, parse_manifests};
pub use mode::{ModeError, parse_mode};
pub use preload::*;
pub use quantity::{Quantity, QuantityError, format_bytes, format_percent, parse_quantity};

/// The API group.
pub const GROUP: &str = "forebay.dev";

/// The API version.
pub const VERSION: &str = "v1alpha1";
