//! Writes the generated manifests into the checkout given as the first argument, by default the working directory. `cargo xtask codegen` runs
//! it as a program of its own, so that `xtask` need not build Kubernetes' types.

fn main() -> std::io::Result<()> {
    let root = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    forebay_crds::write_yaml(root.as_ref())
}
