//! Builds what takes the place of some of the C library.

fn main() {
    println!("cargo::rerun-if-changed=c/world.c");
    cc::Build::new()
        .file("c/world.c")
        .opt_level(2)
        .warnings(true)
        .compile("rollcall_sim_world");
}
