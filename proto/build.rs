//! Generates the types with a protobuf compiler written in Rust, so that no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=weft");
    let tables = ["service", "policy", "dns"].map(|f| format!("weft/tables/v1/{f}.proto"));
    if std::env::var_os("CARGO_FEATURE_GRPC").is_none() {
        prost_build::Config::new().compile_fds(protox::compile(tables, ["."])?)?;
        return Ok(());
    }
    let services =
        ["types", "explain", "hub", "agent", "datapath"].map(|f| format!("weft/v1/{f}.proto"));
    let files = services.into_iter().chain(tables);
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("weft.bin");
    std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    grpc(descriptors)
}

#[cfg(feature = "grpc")]
fn grpc(descriptors: prost_types::FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    Ok(tonic_prost_build::configure().compile_fds(descriptors)?)
}

#[cfg(not(feature = "grpc"))]
fn grpc(_: prost_types::FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    Ok(())
}
