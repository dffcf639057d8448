//! Cases that are ready to be run: settings complete and checked, a directory for what they leave.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;
use vmm::config::DiskConfig;
use vmm::console::ConsoleEnd;

use super::file::CaseSettings;
use crate::config::{Run, SettingsError};
use crate::duration::Limit;
use crate::software_kvm::{self, Unfit};

/// How long a case may take that does not say.
const LIMIT: Limit = Limit::seconds(300);

/// The longest name of a directory that is made of a case's.
const NAME_MAX: usize = 100;

/// A case.
#[derive(Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Where its files go.
    pub directory: PathBuf,
    /// Its settings as a `--config` file, with absolute paths.
    pub settings: Value,
}

/// Why a case cannot be run.
#[derive(Debug, Error)]
pub enum CaseError {
    /// Its settings are no VM.
    #[error("case '{name}': {source}")]
    Settings {
        /// The case.
        name: String,
        /// What is wrong.
        source: Box<SettingsError>,
    },
    /// A file of it is not there.
    #[error("case '{name}': {what} {} cannot be opened: {source}", path.display())]
    Open {
        /// The case.
        name: String,
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Of cases that run at the same time one writes a disk of the other's.
    #[error(
        "case '{name}': {} is a disk of case '{other}' too, and written; share it as PATH,ro or PATH,overlay, or run one case at a time with -j 1", path.display()
    )]
    Shared {
        /// The case.
        name: String,
        /// The other.
        other: String,
        /// The disk, or its overlay.
        path: PathBuf,
    },
    /// The paths cannot be made absolute: there is no working directory.
    #[error("there is no working directory: {0}")]
    Directory(#[source] io::Error),
    /// A name that JSON cannot write.
    #[error("case '{name}': {source}; paths must be UTF-8 here")]
    Json {
        /// The case.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Its kernel cannot run on this host.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// Checks all that can be known before anything runs.
pub fn prepare(cases: Vec<CaseSettings>, out: &Path, jobs: usize) -> Result<Vec<Case>, CaseError> {
    let here = std::env::current_dir().map_err(CaseError::Directory)?;
    let out = here.join(out);
    let mut prepared: Vec<(Case, Run)> = Vec::with_capacity(cases.len());
    for CaseSettings { name, mut settings } in cases {
        let taken = |path: &Path| prepared.iter().any(|(case, _)| case.directory == path);
        let directory = directory(&out, &name, taken);
        settings.relative_to(&here);
        settings.console = Some(ConsoleEnd::File(directory.join("console.log")).into());
        settings.reports = [directory.join("report.json").try_into()]
            .into_iter()
            .flatten()
            .collect();
        settings.timeout.get_or_insert(LIMIT);
        let json = serde_json::to_value(&settings).map_err(|source| CaseError::Json {
            name: name.clone(),
            source,
        })?;
        let run = settings
            .resolve(None)
            .map_err(|source| CaseError::Settings {
                name: name.clone(),
                source: source.into(),
            })?;
        let case = Case {
            name,
            directory,
            settings: without_nulls(json),
        };
        check_files(&case, &run)?;
        if jobs > 1 {
            check_disks(&case, &run, &prepared)?;
        }
        prepared.push((case, run));
    }
    check_kernels(prepared.iter().map(|(_, run)| run))?;
    Ok(prepared.into_iter().map(|(case, _)| case).collect())
}

/// A setting that is not given is left out, not null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.into_iter().filter(|(_, value)| !value.is_null());
            given.collect()
        }
        other => other,
    }
}

/// A directory that is named as the case is, as far as that makes a file name: the same from run to run.
fn directory(out: &Path, name: &str, taken: impl Fn(&Path) -> bool) -> PathBuf {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._=-".contains(c);
    let name: String = name
        .chars()
        .take(NAME_MAX)
        .map(|c| if fits(c) { c } else { '_' })
        .collect();
    // Two names may look the same when they are made file names of.
    let numbered = (2..).map(|number| out.join(format!("{name}-{number}")));
    let mut paths = std::iter::once(out.join(&name)).chain(numbered);
    paths
        .find(|path| !taken(path))
        .unwrap_or_else(|| unreachable!("there are more numbers than cases"))
}

fn check_files(case: &Case, run: &Run) -> Result<(), CaseError> {
    let disks = run.vm.rootfs.iter().chain(&run.vm.disks);
    let files = [
        ("kernel", Some(&run.vm.kernel)),
        ("initrd", run.vm.initrd.as_ref()),
    ];
    let files = files
        .into_iter()
        .filter_map(|(what, path)| Some((what, path?)))
        .chain(disks.map(|disk| ("disk image", &disk.path)))
        .chain(run.vm.pmems.iter().map(|pmem| ("pmem", &pmem.path)));
    for (what, path) in files {
        // Looked at, not opened: a FIFO would wait for its other end.
        fs::metadata(path).map_err(|source| CaseError::Open {
            name: case.name.clone(),
            what,
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// What one case writes can be no other's at the same time.
fn check_disks(case: &Case, run: &Run, others: &[(Case, Run)]) -> Result<(), CaseError> {
    let own = disk_files(run);
    for (other, run) in others {
        let theirs = disk_files(run);
        let shared = own.iter().find(|(path, writes)| {
            let clashes =
                |(other, written): &(PathBuf, bool)| other == path && (*writes || *written);
            theirs.iter().any(clashes)
        });
        if let Some((path, _)) = shared {
            return Err(CaseError::Shared {
                name: case.name.clone(),
                other: other.name.clone(),
                path: path.clone(),
            });
        }
    }
    Ok(())
}

/// The files that the disks of a case are made of, and whether it writes each.
fn disk_files(run: &Run) -> Vec<(PathBuf, bool)> {
    let disks = run.vm.rootfs.iter().chain(&run.vm.disks);
    let pmems = run.vm.pmems.iter();
    let pmems = pmems.map(|pmem| (pmem.path.as_path(), !pmem.read_only));
    let files = disks.flat_map(DiskConfig::files).chain(pmems);
    // One file may be written in two ways; an overlay need not be there yet.
    let file = |(path, writes): (&Path, bool)| {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        (path, writes)
    };
    files.map(file).collect()
}

/// Each kernel once: looking costs a moment where it is needed at all.
fn check_kernels<'a>(runs: impl Iterator<Item = &'a Run>) -> Result<(), Unfit> {
    let mut seen: Vec<&Path> = Vec::new();
    for run in runs.filter(|run| !run.software_kvm) {
        if !seen.contains(&run.vm.kernel.as_path()) {
            software_kvm::check(&run.vm.kernel)?;
            seen.push(&run.vm.kernel);
        }
    }
    Ok(())
}
