//! Shared directories, and how many descriptors each may take of this process's.

use std::io;
use std::path::PathBuf;

use devices::virtio::fs::{Share, ShareOptions};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;

use crate::config::{ShareConfig, VmConfig};

/// Descriptors that all else may need.
const RESERVED: u64 = 256;
/// With fewer, no file system is of use.
const LEAST: u64 = 64;
/// With more, a guest would hold too much of the host's memory: a kilobyte or two with each.
const MOST: u64 = 1 << 18;

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
pub enum ShareOpenError {
    /// It is not a directory, is not there, or may not be looked at.
    #[error("share {}: {source}; name a directory", path.display())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This process may have too few descriptors.
    #[error(
        "{shares} shared directories need more open files than this process's limit of {limit}; raise it (ulimit -n)"
    )]
    TooFewFiles {
        /// How many there are.
        shares: usize,
        /// The limit.
        limit: u64,
    },
}

/// All of them, in the order of the settings.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Share>, ShareOpenError> {
    let shares = config.shares.len();
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let each = limit.saturating_sub(RESERVED) / (shares as u64).max(1);
    if shares > 0 && each < LEAST {
        return Err(ShareOpenError::TooFewFiles { shares, limit });
    }
    let max_files = usize::try_from(each.min(MOST)).unwrap_or(usize::MAX);
    let open = |share| open_share(share, max_files);
    config.shares.iter().map(open).collect()
}

fn open_share(share: &ShareConfig, max_files: usize) -> Result<Share, ShareOpenError> {
    let options = ShareOptions {
        read_only: share.read_only,
        max_files,
    };
    Share::open(&share.path, &share.tag, options).map_err(|source| ShareOpenError::Open {
        path: share.path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = |path: PathBuf| {
            let mut config = VmConfig::new("vmlinux");
            config.shares = vec![ShareConfig::new(path, "t")];
            open(&config).unwrap_err().to_string()
        };
        assert_eq!(
            error(file.clone()),
            format!(
                "share {}: Not a directory (os error 20); name a directory",
                file.display()
            )
        );
        assert_eq!(
            error("no/such".into()),
            "share no/such: No such file or directory (os error 2); name a directory"
        );
    }
}
