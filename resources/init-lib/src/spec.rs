//! What the guest's init is told before there is a channel: a file of `key=value` records, each ended by
//! a NUL, in the archive that brings the init.

use alloc::vec::Vec;

/// Where init, its spec, and further modules are in the initramfs.
pub const INIT: &str = "mvm/init";
/// The spec.
pub const SPEC: &str = "mvm/spec";
/// Kernel modules that mvm brought along, laid out as `lib/modules/RELEASE` is.
pub const MODULES: &str = "mvm/modules";

/// Keys of the spec. Those marked with a star may be repeated.
pub mod key {
    /// Port on the host, in decimal: where to connect over vsock.
    pub const VSOCK: &str = "vsock";
    /// A device file: the serial port to use where there is no vsock.
    pub const SERIAL: &str = "serial";
    /// `MODE:SOURCE`: the root file system, `ro` or `rw`, and its block device or `tag:NAME`.
    pub const ROOT: &str = "root";
    /// `MODE:TAG:PATH`*: a directory shared by virtio-fs.
    pub const SHARE: &str = "share";
    /// Interfaces configured with DHCP: `on`.
    pub const DHCP: &str = "dhcp";
    /// One word of the command*, the program first.
    pub const ARG: &str = "arg";
    /// `NAME=VALUE`*: environment.
    pub const ENV: &str = "env";
    /// The working directory.
    pub const DIRECTORY: &str = "directory";
    /// `COLUMNSxROWS`: give the command a terminal of that size.
    pub const TERMINAL: &str = "terminal";
}

/// Appends a record.
///
/// Values cannot contain NUL, as neither words of a command nor paths can; what follows one is dropped.
pub fn put(spec: &mut Vec<u8>, key: &str, value: &[u8]) {
    let end = value.iter().position(|byte| *byte == 0);
    spec.extend_from_slice(key.as_bytes());
    spec.push(b'=');
    spec.extend_from_slice(&value[..end.unwrap_or(value.len())]);
    spec.push(0);
}

/// All values of `key`, in order.
pub fn values<'a>(spec: &'a [u8], key: &'a str) -> impl Iterator<Item = &'a [u8]> {
    spec.split(|byte| *byte == 0).filter_map(move |record| {
        record
            .strip_prefix(key.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
    })
}

/// The first value of `key`.
#[must_use]
pub fn value<'a>(spec: &'a [u8], key: &'a str) -> Option<&'a [u8]> {
    values(spec, key).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_in_order() {
        let mut spec = Vec::new();
        put(&mut spec, key::ARG, b"make");
        put(&mut spec, key::ENV, b"A=b=c");
        put(&mut spec, key::ARG, b"");
        put(&mut spec, key::ARG, b"two\nlines");
        put(&mut spec, key::DIRECTORY, b"/x\0y");
        let args: Vec<_> = values(&spec, key::ARG).collect();
        assert_eq!(args, [&b"make"[..], b"", b"two\nlines"]);
        assert_eq!(value(&spec, key::ENV), Some(&b"A=b=c"[..]));
        assert_eq!(value(&spec, key::DIRECTORY), Some(&b"/x"[..]));
        assert_eq!(value(&spec, key::ROOT), None);
    }
}
