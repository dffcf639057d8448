//! Kernel modules: which one drives a device, what it needs, and where it is (modules.alias(5),
//! modules.dep(5), modules.softdep(5)).
//!
//! They are looked for where mvm put those it brought along, then in the initramfs, then in the root file
//! system. The directory stays open under [`DIRECTORY`], so that the kernel's own requests find it too
//! when the initramfs is no longer to be seen.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use init_lib::modules::{Index, aliases, lines, matches};
use init_lib::spec;
use rustix::fd::{AsFd, IntoRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::system::{finit_module, uname};

/// The number of the descriptor that holds the module directory open.
const DIRECTORY: i32 = 10;
/// How the kernel's requests reach this program, whatever the root directory is.
const SELF: &str = "/proc/1/exe";
/// `MODULE_INIT_COMPRESSED_FILE`, `include/uapi/linux/module.h`.
const COMPRESSED: i32 = 4;

/// A directory of modules, with its indices.
pub struct Modules {
    directory: OwnedFd,
    dependencies: Vec<u8>,
    aliases: Vec<u8>,
    soft: Vec<u8>,
}

impl Modules {
    /// The first directory of modules for the running kernel.
    pub fn find() -> Option<Self> {
        let release = uname().release().to_string_lossy().into_owned();
        [
            format!("/proc/1/fd/{DIRECTORY}"),
            format!("/{}", spec::MODULES),
            format!("/lib/modules/{release}"),
            format!("/usr/lib/modules/{release}"),
        ]
        .iter()
        .find_map(|path| Self::open(path))
    }

    fn open(path: &str) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty()).ok()?;
        let dependencies = read_at(&directory, "modules.dep").ok()?;
        let index = |name| read_at(&directory, name).unwrap_or_default();
        Some(Self {
            dependencies,
            aliases: index("modules.alias"),
            soft: index("modules.softdep"),
            directory,
        })
    }

    /// Makes the kernel's own requests for modules come here from now on.
    pub fn serve_kernel(&self) {
        let Ok(copy) = rustix::io::fcntl_dupfd_cloexec(&self.directory, DIRECTORY) else {
            return;
        };
        // Stays open as long as the machine runs; another number than asked for serves nobody.
        let _ = copy.into_raw_fd();
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(setting) = openat(CWD, "/proc/sys/kernel/modprobe", flags, Mode::empty()) {
            let _ = rustix::io::write(&setting, SELF.as_bytes());
        }
    }

    /// Loads what drives any of the devices that call themselves `wanted`; whether anything was loaded.
    pub fn load_for(&self, wanted: &[Vec<u8>]) -> bool {
        let mut names: Vec<&[u8]> = Vec::new();
        for (pattern, name) in aliases(&self.aliases) {
            let is_wanted = wanted.iter().any(|alias| matches(pattern, alias));
            if is_wanted && !names.contains(&name) {
                names.push(name);
            }
        }
        let loaded = names.into_iter().filter(|name| self.load(name));
        loaded.count() > 0
    }

    /// Loads a module or what is behind an alias, and all it needs; whether anything new is there.
    pub fn load(&self, name: &[u8]) -> bool {
        let index = self.index();
        let Some(files) = index.files(name) else {
            let behind = index
                .behind(name)
                .filter(|module| index.files(module).is_some());
            let loaded = behind.filter(|module| self.load(module));
            return loaded.count() > 0;
        };
        for before in index.before(name) {
            self.load(before);
        }
        let inserted = files.filter(|file| self.insert(file));
        inserted.count() > 0
    }

    fn index(&self) -> Index<'_> {
        Index {
            dependencies: &self.dependencies,
            aliases: &self.aliases,
            soft: &self.soft,
        }
    }

    fn insert(&self, file: &[u8]) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let result = openat(&self.directory, file, flags, Mode::empty()).and_then(|image| {
            let flags = if file.ends_with(b".ko") {
                0
            } else {
                COMPRESSED
            };
            finit_module(image, c"", flags)
        });
        match result {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => {
                let file = String::from_utf8_lossy(file);
                // A driver that does not find its hardware is no news.
                if errno != Errno::NODEV {
                    crate::log(&format!("module {file}: {errno}"));
                }
                false
            }
        }
    }
}

/// Loads what the kernel asks for; whether it is there.
pub fn for_kernel(name: &[u8]) -> bool {
    Modules::find().is_some_and(|modules| modules.load(name))
}

/// A whole file.
pub fn read_at(directory: impl AsFd, path: &str) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(directory, path, flags, Mode::empty())?;
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        bytes.resize(start + 64 * 1024, 0);
        let count = rustix::io::read(&file, &mut bytes[start..])?;
        bytes.truncate(start + count);
        if count == 0 {
            return Ok(bytes);
        }
    }
}

/// The text of a file as a line.
pub fn line_of(bytes: &[u8]) -> Vec<u8> {
    lines(bytes).next().unwrap_or_default().to_owned()
}
