//! What is taken from Debian: programs that have to be there, and packages that are only unpacked.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::progress::Step;
use crate::run;

/// A program and the package it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Program(pub &'static str, pub &'static str);

/// Makes sure that every program is there: installs the packages of those missing where this process may, and
/// names them in one line where it may not.
pub fn require(programs: &[Program]) -> Result<()> {
    let mut packages: Vec<_> = programs
        .iter()
        .filter(|Program(name, _)| find(name).is_none())
        .map(|Program(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    install(&packages)
}

/// As [`require`], for a package that is known by a file of it.
pub fn require_file(file: &str, package: &str) -> Result<()> {
    if Path::new(file).exists() {
        return Ok(());
    }
    install(&[package])
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let command = format!("apt-get install -y --no-install-recommends {list}");
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!(
            "these Debian packages are needed and not installed: {list}; install them with `sudo {command}`"
        );
    }
    refresh_lists()?;
    let step = Step::begin(format!("installing {list}"));
    let mut apt = Command::new("apt-get");
    // Another apt may be at work: a fresh machine often installs its updates first.
    apt.args(["install", "-y", "--no-install-recommends", "-qq"])
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run::quiet(&mut apt).context("apt-get install failed")?;
    step.done();
    Ok(())
}

/// The full path of a program; `/sbin` counts even where the caller's `PATH` leaves it out.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// A package at the version that apt would install.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The first package it depends on, which is how a metapackage names the real one.
    depends: Option<String>,
}

/// The packages that this machine's Debian has, of those asked for, in the order of the question.
pub fn known(names: &[&str]) -> Result<Vec<Package>> {
    if find("apt-cache").is_none() {
        bail!("guest files come from Debian packages, and this machine has no apt");
    }
    let packages = query(names);
    if !packages.is_empty() {
        return Ok(packages);
    }
    refresh_lists_now()?;
    Ok(query(names))
}

fn query(names: &[&str]) -> Vec<Package> {
    let output = Command::new("apt-cache")
        .args(["show", "--no-all-versions"])
        .args(names)
        .stderr(Stdio::null())
        .output();
    let text = output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    let mut packages: Vec<_> = text.split("\n\n").filter_map(Package::parse).collect();
    packages.sort_by_key(|package| names.iter().position(|name| *name == package.name));
    packages
}

impl Package {
    /// One paragraph of `apt-cache show`.
    fn parse(paragraph: &str) -> Option<Self> {
        let field = |key: &str| {
            let mut lines = paragraph.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        };
        Some(Self {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            depends: field("Depends")
                .and_then(|depends| depends.split([' ', ',']).next())
                .map(str::to_owned),
        })
    }

    /// What a metapackage stands for.
    pub fn real(&self) -> Result<Self> {
        let name = self.depends.as_deref().unwrap_or(&self.name);
        let package = query(&[name]).into_iter().next();
        package.with_context(|| format!("apt does not know {name}, which {} stands for", self.name))
    }

    /// Downloads the package into `directory` and unpacks it there, without installing it.
    pub fn unpack(&self, directory: &Path) -> Result<()> {
        let mut download = Command::new("apt-get");
        // The unprivileged downloader of apt could not write to a directory of ours.
        download
            .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
            .arg(format!("{}={}", self.name, self.version))
            .current_dir(directory);
        if run::quiet(&mut download).is_err() {
            refresh_lists_now()?;
            run::quiet(&mut download).with_context(|| format!("cannot download {}", self.name))?;
        }
        let archive = std::fs::read_dir(directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no .deb behind")?;
        run::quiet(Command::new("dpkg").arg("-x").arg(&archive).arg(directory))
            .with_context(|| format!("cannot unpack {}", archive.display()))?;
        std::fs::remove_file(archive)?;
        Ok(())
    }
}

/// Fetches the package lists where they are missing or more than a day old, and this process may.
fn refresh_lists() -> Result<()> {
    let fresh = std::fs::read_dir("/var/lib/apt/lists")
        .ok()
        .is_some_and(|entries| {
            entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_name().to_string_lossy().ends_with("InRelease"))
                .filter_map(|entry| entry.metadata().ok()?.modified().ok())
                .any(|time| {
                    SystemTime::now()
                        .duration_since(time)
                        .is_ok_and(|age| age < Duration::from_secs(24 * 3600))
                })
        });
    if fresh { Ok(()) } else { refresh_lists_now() }
}

fn refresh_lists_now() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("apt's package lists are missing or old; refresh them with `sudo apt-get update`");
    }
    let step = Step::begin("refreshing the package lists");
    // A third-party source that is down does not matter as long as Debian's own answers, and what was needed
    // from the lists is missed soon enough.
    if let Err(error) = run::quiet(Command::new("apt-get").args(["update", "-qq"])) {
        eprintln!("{error:#}");
    }
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metapackage_names_the_real_one() {
        let package = Package::parse(
            "Package: linux-image-cloud-amd64\nVersion: 6.1.1-2\nDepends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.1-2), x\n",
        )
        .unwrap();
        assert_eq!(package.version, "6.1.1-2");
        assert_eq!(
            package.depends.as_deref(),
            Some("linux-image-6.1.0-9-cloud-amd64")
        );
    }
}
