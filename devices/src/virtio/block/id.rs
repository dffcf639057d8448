//! What a disk is called: the name that the guest reads (Virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID) and that
//! mvm's own messages use.

use std::path::Path;

use super::request::ID_BYTES;

/// A name from the image's: the same each time, printable, at most 20 bytes, and different for long names
/// that begin alike.
#[must_use]
pub fn id_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.as_encoded_bytes();
    let printable = |bytes: &[u8]| -> String {
        let legible = |byte: &u8| match *byte {
            byte if byte.is_ascii_alphanumeric() || b"._-+".contains(&byte) => char::from(byte),
            _ => '_',
        };
        bytes.iter().map(legible).collect()
    };
    if name.len() <= ID_BYTES {
        return printable(name);
    }
    // FNV-1a, 32 bits: eight digits that depend on the whole name.
    let hash = name.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{}-{hash:08x}", printable(&name[..ID_BYTES - 9]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_of_the_files_name() {
        for (path, id) in [
            ("disk.img", "disk.img"),
            ("/a/b/root image.ext4", "root_image.ext4"),
            ("/a/exactly-twenty-b.ext", "exactly-twenty-b.ext"),
            ("/a/b/", "b"),
            ("/", "_"),
            ("\u{e9}.img", "__.img"),
        ] {
            assert_eq!(id_of(Path::new(path)), id, "{path}");
        }
        let long = |n| id_of(Path::new(&format!("/images/debian-13-cloud-amd64-{n}.raw")));
        assert_eq!(long(1), long(1));
        assert_ne!(long(1), long(2));
        assert_eq!(long(1).len(), ID_BYTES);
        assert!(long(1).starts_with("debian-13-c-"), "{}", long(1));
    }
}
