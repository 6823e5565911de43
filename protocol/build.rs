//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["node.proto", "local.proto", "broker.proto", "csi.proto", "pluginregistration.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".forebay.node.v1").disable_comments(["."]).compile_fds(descriptors)?;
    Ok(())
}
