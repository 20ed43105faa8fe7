//! Generated types of `weft/v1/*.proto`; no logic.

#![allow(clippy::all, clippy::pedantic, unreachable_pub)]

/// Package `weft.v1`.
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// Encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft.bin"));
