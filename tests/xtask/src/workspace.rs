//! The checkout: where it is, and what cargo builds of it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::run;

/// The directory of the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    // cargo says where the package is when it runs this; otherwise it is where it was built.
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package
        .ancestors()
        .nth(2)
        .map_or_else(|| package.clone(), Path::to_owned)
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// cargo, to be run in the checkout.
pub fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Builds the release binary of a package as one file that needs no library, so that it runs in guests and on hosts
/// that have none, and starts sooner; its path.
pub fn release(package: &str) -> Result<PathBuf> {
    build_release(package, &[])
}

/// The same, and has the linker write to `map` what it put where.
pub fn release_with_map(package: &str, map: &Path) -> Result<PathBuf> {
    let argument = format!("link-arg=-Wl,--Map={}", map.display());
    build_release(package, &["--", "-C", &argument])
}

fn build_release(package: &str, of_rustc: &[&str]) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    // With a target named, the flags are not those of build scripts.
    let mut cargo = cargo_command(&["rustc", "--release", "--package", package]);
    cargo
        .args(["--bin", package, "--target", &target])
        .args(of_rustc)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    run::shown(&mut cargo)?;
    Ok(self::target().join(target).join("release").join(package))
}

/// Builds the debug binary of a package; its path.
pub fn debug(package: &str) -> Result<PathBuf> {
    run::shown(&mut cargo_command(&["build", "--package", package]))?;
    Ok(target().join("debug").join(package))
}

/// Builds the examples of a package; their paths, in the order of `names`.
pub fn examples(package: &str, names: &[&str]) -> Result<Vec<PathBuf>> {
    run::shown(&mut cargo_command(&[
        "build",
        "--package",
        package,
        "--examples",
    ]))?;
    let directory = target().join("debug/examples");
    Ok(names.iter().map(|name| directory.join(name)).collect())
}
