//! Compiles `rollcall/v1/*.proto` without a protoc on the machine.

use std::path::PathBuf;

const FILES: [&str; 7] = [
    "rollcall/v1/types.proto",
    "rollcall/v1/registry.proto",
    "rollcall/v1/session.proto",
    "rollcall/v1/watch.proto",
    "rollcall/v1/cluster.proto",
    "rollcall/v1/peer.proto",
    "rollcall/v1/federation.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=rollcall");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".")
        // A frame is encoded once and shared: these messages hold it as bytes, which the wire cannot
        // tell from the typed field of the published definition (see src/shared.rs).
        .extern_path(".rollcall.v1.WatchResponse", "crate::shared::WatchResponse")
        .extern_path(".rollcall.v1.QueryResponse", "crate::shared::QueryResponse")
        .codec_path("crate::codec::LeanCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
