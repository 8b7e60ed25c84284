//! Compiles the peers' definitions without a protoc on the machine.

#[cfg(not(feature = "compare"))]
fn main() {}

#[cfg(feature = "compare")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    for file in ["etcd.proto", "nacos.proto"] {
        let descriptors = protox::compile([file], ["proto"])?;
        tonic_prost_build::configure()
            .build_server(false)
            .bytes(".")
            .compile_fds(descriptors)?;
    }
    Ok(())
}
