//! A share that a guest may change nothing in.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::ShareOptions;
use super::client::Client;
use super::{Body, ROOT, op};

#[test]
fn everything_that_changes_something_is_refused() {
    let mut client = Client::new(ShareOptions {
        read_only: true,
        max_files: 100,
    });
    fs::create_dir(client.path("dir")).unwrap();
    fs::write(client.path("file"), "as it was").unwrap();
    fs::set_permissions(client.path("file"), fs::Permissions::from_mode(0o666)).unwrap();
    let file = client.lookup(ROOT, "file").unwrap();
    let handle = client.open(file, libc::O_RDONLY).unwrap();
    let fallocate = Body::longs([handle, 0, 4096, 0]);
    let xattr = Body::words([1, 0]).and_name("user.x").and(Body(vec![1]));
    for (opcode, node, body) in [
        (op::SETATTR, file, Body::mode(0o600)),
        (op::SYMLINK, ROOT, Body::name("link").and_name("file")),
        (
            op::MKNOD,
            ROOT,
            Body::words([0o100600, 0, 0, 0]).and_name("n"),
        ),
        (op::MKDIR, ROOT, Body::words([0o700, 0]).and_name("n")),
        (op::UNLINK, ROOT, Body::name("file")),
        (op::RMDIR, ROOT, Body::name("dir")),
        (
            op::RENAME,
            ROOT,
            Body::longs([ROOT]).and_name("file").and_name("n"),
        ),
        (
            op::RENAME2,
            ROOT,
            Body::longs([ROOT, 0]).and_name("file").and_name("n"),
        ),
        (op::LINK, ROOT, Body::longs([file]).and_name("n")),
        (op::WRITE, file, Body::write(handle, 0, b"changed")),
        (op::FALLOCATE, file, fallocate),
        (
            op::CREATE,
            ROOT,
            Body::words([0, 0o600, 0, 0]).and_name("n"),
        ),
        (
            op::CREATE,
            ROOT,
            Body::words([0, 0o600, 0, 0]).and_name("file"),
        ),
    ] {
        assert_eq!(
            client.call(opcode, node, &body),
            Err(libc::EROFS),
            "{opcode}"
        );
    }
    assert!(client.call(op::SETXATTR, file, &xattr).is_err());
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_ACCMODE,
        libc::O_RDONLY | libc::O_TRUNC,
        libc::O_WRONLY | libc::O_APPEND,
    ] {
        assert_eq!(client.open(file, flags), Err(libc::EROFS), "{flags:#o}");
    }
    let read = client.call(op::READ, file, &Body::read(handle, 0, 100));
    assert_eq!(read.unwrap(), b"as it was");
    assert_eq!(client.names(), ["dir", "file"]);
    let mode = fs::metadata(client.path("file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o666);
}

#[test]
fn a_directory_opened_for_an_unnamed_file_is_opened_to_be_read() {
    let mut client = Client::new(ShareOptions {
        read_only: true,
        max_files: 100,
    });
    let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
    client
        .call(op::OPENDIR, ROOT, &Body::words([flags, 0]))
        .unwrap();
    assert_eq!(
        client.open(ROOT, libc::O_TMPFILE | libc::O_RDWR),
        Err(libc::EROFS)
    );
}
