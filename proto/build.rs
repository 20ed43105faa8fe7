//! Generates the gRPC types with a protobuf compiler written in Rust, so that no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["types", "hub", "agent", "datapath"].map(|f| format!("weft/v1/{f}.proto"));
    println!("cargo::rerun-if-changed=weft/v1");
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("weft.bin");
    std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
