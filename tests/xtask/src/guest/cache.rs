//! The cache outside the checkout: `$XDG_CACHE_HOME/mvm`, one directory per part and recipe.
//!
//! A part is built in a directory beside its final place and renamed when it is whole, so an interrupted build
//! leaves no entry, and a lock file keeps two builds from doing the same work.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, io};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Entries that nobody has used for this long go when a newer one of the same part is made.
const KEEP: Duration = Duration::from_secs(14 * 24 * 3600);

/// Everything that a part's content depends on.
#[derive(Debug, Clone)]
pub struct Recipe {
    part: &'static str,
    hash: Sha256,
}

impl Recipe {
    /// The recipe of a part with nothing in it yet.
    pub fn new(part: &'static str) -> Self {
        Self {
            part,
            hash: Sha256::new(),
        }
    }

    /// Adds something that tells one build from another. Lengths go in too, so that no two lists look the same.
    #[must_use]
    pub fn with(mut self, what: impl AsRef<[u8]>) -> Self {
        let what = what.as_ref();
        self.hash.update(what.len().to_le_bytes());
        self.hash.update(what);
        self
    }

    /// Adds a file, or every file of a tree: names, permissions and contents.
    pub fn with_files(self, path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;

        let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let mode = metadata.permissions().mode() & 0o111;
        let this = self.with(name).with(mode.to_le_bytes());
        if metadata.is_file() {
            return Ok(this.with(fs::read(path)?));
        }
        let mut children = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        children.sort();
        children
            .iter()
            .try_fold(this, |recipe, child| recipe.with_files(child))
    }

    fn directory_name(&self) -> String {
        let digest = self.hash.clone().finalize();
        let hex: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}-{hex}", self.part)
    }
}

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// Whether entries that are missing are built.
    builds: bool,
}

impl Cache {
    /// The user's cache, made where it does not exist.
    pub fn open() -> Result<Self> {
        let absolute = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .context(
                "neither XDG_CACHE_HOME nor HOME is set, so there is no place for guest files",
            )?;
        Self::at(&base.join("mvm"))
    }

    fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self {
            root: root.to_owned(),
            builds: true,
        })
    }

    /// The same cache, with what is in it now and no more.
    #[must_use]
    pub fn without_building(self) -> Self {
        Self {
            builds: false,
            ..self
        }
    }

    /// Where a recipe's entry is, if it has been built.
    pub fn get(&self, recipe: &Recipe) -> Option<PathBuf> {
        let entry = self.root.join(recipe.directory_name());
        entry.is_dir().then_some(entry)
    }

    /// The recipe's entry, built by `build` in an empty directory where it does not exist yet.
    pub fn get_or_build(
        &self,
        recipe: &Recipe,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(entry) = self.get(recipe) {
            return Ok(entry);
        }
        if !self.builds {
            bail!(
                "{} has not been prepared; `cargo xtask guest all` does it",
                recipe.part
            );
        }
        let lock = File::create(self.root.join(format!("{}.lock", recipe.part)))?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another run that is making {}", recipe.part);
            lock.lock()?;
        }
        // Whoever held the lock may have built just this.
        if let Some(entry) = self.get(recipe) {
            return Ok(entry);
        }
        let entry = self.root.join(recipe.directory_name());
        let unfinished = self.root.join(format!("{}.unfinished", recipe.part));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .context("cannot remove what an interrupted run left")?;
        }
        fs::create_dir(&unfinished)?;
        build(&unfinished)?;
        fs::rename(&unfinished, &entry)?;
        self.forget_old(recipe)?;
        Ok(entry)
    }

    /// Removes entries of the same part that are old.
    fn forget_old(&self, recipe: &Recipe) -> Result<()> {
        let prefix = format!("{}-", recipe.part);
        let current = recipe.directory_name();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let age = SystemTime::now()
                .duration_since(entry.metadata()?.modified()?)
                .unwrap_or_default();
            if name.starts_with(&prefix) && *name != current && age > KEEP {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Moves a finished file into the entry that is being built.
pub fn keep(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        bail!("{} was not made", from.display());
    }
    fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_built_once_and_only_whole() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let recipe = Recipe::new("thing").with("1");

        cache
            .get_or_build(&recipe, |path| {
                fs::write(path.join("half"), "x")?;
                bail!("interrupted")
            })
            .unwrap_err();
        assert_eq!(cache.get(&recipe), None);

        let entry = cache
            .get_or_build(&recipe, |path| {
                assert!(!path.join("half").exists());
                Ok(fs::write(path.join("whole"), "x")?)
            })
            .unwrap();
        assert!(entry.join("whole").exists());
        cache
            .get_or_build(&recipe, |_| panic!("it is there"))
            .unwrap();
        let frozen = cache.without_building();
        frozen
            .get_or_build(&recipe, |_| panic!("it is there"))
            .unwrap();
        frozen
            .get_or_build(&recipe.with("2"), |_| panic!("nothing is built"))
            .unwrap_err();
    }

    #[test]
    fn every_part_of_a_recipe_counts() {
        let name = |recipe: Recipe| recipe.directory_name();
        assert_ne!(
            name(Recipe::new("a").with("xy")),
            name(Recipe::new("a").with("x").with("y"))
        );
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "1").unwrap();
        let before = name(Recipe::new("a").with_files(directory.path()).unwrap());
        fs::write(&file, "2").unwrap();
        assert_ne!(
            before,
            name(Recipe::new("a").with_files(directory.path()).unwrap())
        );
    }
}
