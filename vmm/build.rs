//! Builds the init that mvm brings into a guest to run a command there, for the library to embed.
//!
//! It is a program for another environment (no standard library, its own linking), so another cargo builds
//! it, in a directory of its own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// A static program at a fixed address that starts at its own entry: there is no libc to start it.
const RUSTFLAGS: [&str; 6] = [
    "-Crelocation-model=static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,max-page-size=4096",
];
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let variable = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let resources = variable("CARGO_MANIFEST_DIR").join("../resources");
    let out = variable("OUT_DIR");
    for source in [
        "init/src",
        "init/Cargo.toml",
        "init/Cargo.lock",
        "init-lib/src",
        "init-lib/Cargo.toml",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            resources.join(source).display()
        );
    }

    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--manifest-path")
        .arg(resources.join("init/Cargo.toml"))
        .arg("--target-dir")
        .arg(&out)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    // What is meant for this build is not meant for that one.
    let meant_for_this = |name: &str| {
        ["RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"].contains(&name)
            || name.starts_with("CARGO_PROFILE_")
    };
    for (name, _) in env::vars().filter(|(name, _)| meant_for_this(name)) {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the guest's init does not build: {status}"),
        Err(error) => panic!("cargo cannot be run for the guest's init: {error}"),
    }
    let init = out.join(TARGET).join("release/mvm-init");
    println!("cargo::rustc-env=MVM_INIT={}", init.display());
}
