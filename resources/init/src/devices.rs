//! Finding the hardware as a distribution does: every device says by an alias what can drive it
//! (`modalias` in sysfs), and drivers find further devices.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};

use crate::modules::{Modules, line_of, read_at};

/// The buses that devices of mvm's machines are on. The processor's own modules are left out: they are
/// many, and no command needs them.
const BUSES: [&str; 5] = ["acpi", "platform", "pci", "virtio", "nd"];

/// Loads the drivers of all devices there are, and of those that these bring.
pub fn load_drivers(modules: &Modules) {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    loop {
        let new: Vec<Vec<u8>> = BUSES
            .iter()
            .flat_map(|bus| aliases(bus))
            .filter(|alias| !seen.contains(alias))
            .collect();
        if new.is_empty() || !modules.load_for(&new) {
            return;
        }
        seen.extend(new);
    }
}

/// What the devices of a bus call themselves.
fn aliases(bus: &str) -> Vec<Vec<u8>> {
    let devices = format!("/sys/bus/{bus}/devices");
    let mut aliases = Vec::new();
    for device in names(&devices) {
        let alias = read_at(CWD, &format!("{devices}/{device}/modalias"));
        let alias = line_of(&alias.unwrap_or_default());
        if !alias.is_empty() && !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
    aliases
}

/// The names in a directory; none where there is no such directory.
pub fn names(path: &str) -> Vec<String> {
    let Ok(directory) = open_directory(path) else {
        return Vec::new();
    };
    let Ok(entries) = Dir::read_from(&directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect()
}

fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}
