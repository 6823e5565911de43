//! Writes the generated files below the current folder, the root of the checkout: `cargo xtask codegen`.

fn main() -> std::io::Result<()> {
    forebay_crds::write_generated(std::path::Path::new("."))
}
