//! The kernel modules that a VM's devices need, out of a directory of the host's.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use init_lib::modules::Index;
use init_lib::spec;

use super::ModulesError;
use super::archive::Archive;

/// What mvm's machines may need: transports, devices, file systems, and what finds the root on a disk. A
/// kernel has some of these built in.
const WANTED: [&str; 20] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "virtio_pmem",
    "nd_pmem",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "af_packet",
    "8250",
    "ext4",
    "xfs",
    "btrfs",
    "squashfs",
    "erofs",
    "overlay",
    "crc32c",
];

/// The indices that the guest reads too.
const INDICES: [&str; 3] = ["modules.dep", "modules.alias", "modules.softdep"];

/// Adds what is wanted of `directory`, and all that needs.
pub(super) fn add(archive: &mut Archive, directory: &Path) -> Result<(), ModulesError> {
    let read = |file: &Path| {
        let contents = fs::read(directory.join(file)).and_then(|contents| {
            // The archive's format counts in 32 bits.
            match u32::try_from(contents.len()) {
                Ok(_) => Ok(contents),
                Err(_) => Err(io::ErrorKind::FileTooLarge.into()),
            }
        });
        contents.map_err(|source| ModulesError::Read {
            directory: directory.to_owned(),
            file: file.display().to_string(),
            source,
        })
    };
    let mut indices = Vec::new();
    for name in INDICES {
        let text = match read(Path::new(name)) {
            // Only the first must be there.
            Err(_) if name != INDICES[0] => Vec::new(),
            text => text?,
        };
        archive.file(&format!("{}/{name}", spec::MODULES), 0o644, &text);
        indices.push(text);
    }
    let index = Index {
        dependencies: &indices[0],
        aliases: &indices[1],
        soft: &indices[2],
    };
    for file in closure(&index) {
        let file = Path::new(OsStr::from_bytes(file));
        let contents = read(file)?;
        let place = format!("{}/{}", spec::MODULES, file.display());
        archive.file(&place, 0o644, &contents);
    }
    Ok(())
}

/// The files of all wanted modules, each once.
fn closure<'a>(index: &Index<'a>) -> BTreeSet<&'a [u8]> {
    let mut files = BTreeSet::new();
    for name in WANTED.map(str::as_bytes) {
        let before = index.before(name);
        let behind = index.behind(name);
        for module in before.chain(behind).chain([name]) {
            files.extend(index.files(module).into_iter().flatten());
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_modules_come_with_what_they_need() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "modules.dep",
            "kernel/virtio_blk.ko: kernel/virtio.ko\nkernel/virtio.ko:\nkernel/sound.ko:\n",
        );
        put("kernel/virtio_blk.ko", "BLOCK");
        put("kernel/virtio.ko", "VIRTIO");
        put("kernel/sound.ko", "SOUND");
        let mut archive = Archive::default();
        add(&mut archive, directory.path()).unwrap();
        let archive = String::from_utf8(archive.finish()).unwrap();
        for part in ["mvm/modules/kernel/virtio_blk.ko", "BLOCK", "VIRTIO"] {
            assert!(archive.contains(part), "{part}");
        }
        assert!(!archive.contains("SOUND"));

        put("modules.dep", "kernel/virtio_net.ko:\n");
        let error = add(&mut Archive::default(), directory.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("kernel/virtio_net.ko cannot be read"),
            "{error}"
        );
    }
}
