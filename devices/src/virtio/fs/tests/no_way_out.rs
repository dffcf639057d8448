//! A guest that wants what is outside the shared directory.

use std::fs;
use std::os::unix::fs::symlink;

use super::client::Client;
use super::{Body, ROOT, WRITABLE, op};

/// A share beside which lies a directory with a secret.
fn client() -> Client {
    let client = Client::new(WRITABLE);
    fs::create_dir(client.path("../outside")).unwrap();
    fs::write(client.path("../outside/secret"), "secret").unwrap();
    fs::create_dir(client.path("inside")).unwrap();
    client
}

#[test]
fn names_are_single_names() {
    let mut client = client();
    let inside = client.lookup(ROOT, "inside").unwrap();
    for parent in [ROOT, inside] {
        for name in ["..", ".", "", "../outside", "/etc", "inside/..", "a/b"] {
            assert_eq!(client.lookup(parent, name), Err(libc::EINVAL), "{name:?}");
            let body = Body::words([0o700, 0]).and_name(name);
            assert!(client.call(op::MKDIR, parent, &body).is_err(), "{name:?}");
            let body = Body::name(name);
            assert!(client.call(op::UNLINK, parent, &body).is_err(), "{name:?}");
            assert!(client.call(op::RMDIR, parent, &body).is_err(), "{name:?}");
            let body = Body::longs([parent]).and_name("inside").and_name(name);
            assert!(client.call(op::RENAME, ROOT, &body).is_err(), "{name:?}");
            let body = Body::longs([inside]).and_name(name);
            assert!(client.call(op::LINK, parent, &body).is_err(), "{name:?}");
            let body = Body::words([2, 0o600, 0, 0]).and_name(name);
            assert!(client.call(op::CREATE, parent, &body).is_err(), "{name:?}");
        }
    }
    assert_eq!(client.names(), ["inside"]);
}

#[test]
fn a_link_is_only_read() {
    let mut client = client();
    for target in ["../outside/secret", "/etc/passwd", "../outside"] {
        let link = Body::name("link").and_name(target);
        client.call(op::SYMLINK, ROOT, &link).unwrap();
        let node = client.lookup(ROOT, "link").unwrap();
        assert_eq!(
            client.call(op::READLINK, node, &Body::default()).unwrap(),
            target.as_bytes()
        );
        for flags in [
            libc::O_RDONLY,
            libc::O_RDWR,
            libc::O_PATH,
            libc::O_DIRECTORY,
        ] {
            assert!(client.open(node, flags).is_err(), "{target}");
        }
        let opened = client.call(op::OPENDIR, node, &Body::longs([0]));
        assert!(opened.is_err(), "{target}");
        assert!(client.lookup(node, "secret").is_err(), "{target}");
        assert!(
            client.call(op::SETATTR, node, &Body::mode(0o777)).is_err(),
            "{target}"
        );
        // With O_PATH, open(2) would take no notice of O_CREAT and O_EXCL and follow the link.
        let flags = libc::O_PATH | libc::O_TMPFILE;
        assert!(client.create("link", flags, 0o600).is_err(), "{target}");
        client.call(op::UNLINK, ROOT, &Body::name("link")).unwrap();
    }
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let mut client = client();
    let node = client.lookup(ROOT, "inside").unwrap();
    fs::write(client.path("inside/own"), "").unwrap();
    fs::rename(client.path("inside"), client.path("moved")).unwrap();
    symlink("../outside", client.path("inside")).unwrap();
    client.lookup(node, "own").unwrap();
    assert_eq!(client.lookup(node, "secret"), Err(libc::ENOENT));
    let link = client.lookup(ROOT, "inside").unwrap();
    assert_ne!(link, node);
    assert_eq!(client.lookup(link, "secret"), Err(libc::ENOTDIR));
}

#[test]
fn numbers_that_were_not_given_are_nothing() {
    let mut client = client();
    fs::write(client.path("file"), "").unwrap();
    let file = client.lookup(ROOT, "file").unwrap();
    let handle = client.open(file, libc::O_RDONLY).unwrap();
    for node in [0, 2, file + 1, u64::MAX] {
        assert_eq!(client.lookup(node, "secret"), Err(libc::EBADF));
        assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::EBADF));
    }
    for (node, handle) in [
        (file, handle + 1),
        (file, u64::MAX),
        (ROOT, handle),
        (file, 0),
    ] {
        let read = client.call(op::READ, node, &Body::read(handle, 0, 16));
        assert_eq!(read, Err(libc::EBADF));
    }
    // The largest number there is, for what lies on the host.
    let outside = fs::metadata(client.path("../outside")).unwrap();
    let number = std::os::unix::fs::MetadataExt::ino(&outside);
    assert!(client.lookup(number, "secret").is_err());
    assert!(client.lookup(number | 1 << 47, "secret").is_err());
}

#[test]
fn there_are_no_device_files() {
    let mut client = client();
    // Nobody else could make one in any case.
    client.user = 0;
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let node = Body::words([kind | 0o666, 0x103, 0, 0]).and_name("device");
        assert_eq!(client.call(op::MKNOD, ROOT, &node), Err(libc::EPERM));
    }
    let whiteout = Body::longs([ROOT, libc::RENAME_WHITEOUT.into()]);
    let whiteout = whiteout.and_name("inside").and_name("moved");
    assert_eq!(client.call(op::RENAME2, ROOT, &whiteout), Err(libc::EINVAL));
    let fifo = Body::words([libc::S_IFIFO | 0o600, 0, 0, 0]).and_name("fifo");
    client.call(op::MKNOD, ROOT, &fifo).unwrap();
    let node = client.lookup(ROOT, "fifo").unwrap();
    // Nobody is at its other end: it would be waited for.
    assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::EBADF));
}
