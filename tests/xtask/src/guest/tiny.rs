//! The small kernel: Debian's source with `resources/guest/tiny.config`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Result, bail};

use super::cache::{Recipe, keep};
use super::{Guests, Tiny, resource};
use crate::debian::{self, Program};
use crate::progress::Step;
use crate::run;

/// Where the source comes from: the package is unpacked, not installed.
pub const PACKAGE: &str = "linux-source-6.12";

/// Changed when this file makes something else of the same ingredients.
const VERSION: &str = "1";

/// What a kernel build runs.
const PROGRAMS: [Program; 8] = [
    Program("make", "make"),
    Program("gcc", "gcc"),
    Program("ld", "binutils"),
    Program("flex", "flex"),
    Program("bison", "bison"),
    Program("bc", "bc"),
    Program("lz4", "lz4"),
    Program("xz", "xz-utils"),
];

fn recipe(guests: &Guests) -> Result<Recipe> {
    let source = guests.package(&[PACKAGE])?;
    Recipe::new("tiny")
        .with(VERSION)
        .with(&source.version)
        .with_files(&resource("guest/tiny.config"))
}

pub fn if_built(guests: &Guests) -> Result<Option<Tiny>> {
    Ok(guests
        .cache
        .get(&recipe(guests)?)
        .map(|entry| files(&entry)))
}

pub fn prepare(guests: &Guests) -> Result<Tiny> {
    let source = guests.package(&[PACKAGE])?;
    let entry = guests.cache.get_or_build(&recipe(guests)?, |directory| {
        debian::require(&PROGRAMS)?;
        debian::require_file("/usr/include/libelf.h", "libelf-dev")?;
        let step = Step::begin(format!(
            "building the small kernel from {} (some minutes)",
            source.version
        ));
        let package = directory.join("package");
        fs::create_dir(&package)?;
        step.at("downloading the source");
        source.unpack(&package)?;
        step.at("unpacking the source");
        let tarball = package.join(format!("usr/src/{PACKAGE}.tar.xz"));
        run::quiet(
            Command::new("tar")
                .arg("-C")
                .arg(&package)
                .arg("-xf")
                .arg(&tarball),
        )?;

        let tree = package.join(PACKAGE);
        let config = resource("guest/tiny.config");
        let mut configure = make(&tree);
        configure
            .arg("allnoconfig")
            .env("KCONFIG_ALLCONFIG", &config);
        run::quiet(&mut configure)?;
        check_config(
            &fs::read_to_string(&config)?,
            &fs::read_to_string(tree.join(".config"))?,
        )?;
        run::watched(make(&tree).args(["vmlinux", "bzImage"]), &step)?;

        let built = files(directory);
        keep(&tree.join("vmlinux"), &built.vmlinux)?;
        keep(&tree.join("arch/x86/boot/bzImage"), &built.bzimage)?;
        fs::remove_dir_all(&package)?;
        step.done();
        Ok(())
    })?;
    Ok(files(&entry))
}

fn files(directory: &Path) -> Tiny {
    Tiny {
        vmlinux: directory.join("vmlinux"),
        bzimage: directory.join("bzImage"),
    }
}

/// `make` in the source tree, with nothing of this machine in what it builds.
fn make(tree: &Path) -> Command {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(tree)
        .arg(format!("-j{jobs}"))
        .args([
            "KBUILD_BUILD_TIMESTAMP=@0",
            "KBUILD_BUILD_USER=mvm",
            "KBUILD_BUILD_HOST=mvm",
        ])
        // A make that runs this one must not hand down its flags.
        .env_remove("MAKEFLAGS");
    make
}

/// Kconfig drops what it cannot satisfy without a word: every line asked for must have come through.
fn check_config(asked: &str, got: &str) -> Result<()> {
    let lost: Vec<_> = asked
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !got.lines().any(|other| other == *line))
        .collect();
    if !lost.is_empty() {
        bail!(
            "this kernel source does not know or allow: {}",
            lost.join(" ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_kconfig_dropped_is_noticed() {
        check_config("# text\nCONFIG_A=y\n", "CONFIG_A=y\nCONFIG_B=y\n").unwrap();
        let error = check_config("CONFIG_A=y\nCONFIG_B=y\n", "CONFIG_A=y\n").unwrap_err();
        assert!(error.to_string().ends_with("CONFIG_B=y"));
    }
}
