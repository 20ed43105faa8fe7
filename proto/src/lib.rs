//! Generated types of the `.proto` files; no logic.

#![allow(clippy::all, clippy::pedantic, unreachable_pub)]

/// Packages `weft.tables.*`: configurations of built-in plugins. All that there is without the feature
/// `grpc`, for the plugins themselves.
pub mod tables {
    /// Package `weft.tables.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/weft.tables.v1.rs"));

        /// Bits of what is known of a backend, in [`ServicePortTable`].
        pub mod backend {
            /// Gets new connections where traffic goes to the whole cluster.
            pub const CLUSTER: u8 = 1 << 0;
            /// Gets new connections where traffic stays on the backend's node.
            pub const LOCAL: u8 = 1 << 1;
            /// Ready, or serving while it terminates: the Service has an endpoint somewhere.
            pub const COUNTS: u8 = 1 << 2;
            /// Where it is: one of these four.
            pub const PLACE: u8 = 3 << 3;
            /// A pod of this node.
            pub const LOCAL_POD: u8 = 0;
            /// A pod of another node.
            pub const REMOTE_POD: u8 = 1 << 3;
            /// An address of this node.
            pub const HOST: u8 = 2 << 3;
            /// An address of another node, or outside of the fabric.
            pub const ELSEWHERE: u8 = 3 << 3;
        }
    }
}

/// Package `weft.v1`.
#[cfg(feature = "grpc")]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// Encoded `FileDescriptorSet`, for gRPC reflection.
#[cfg(feature = "grpc")]
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft.bin"));
