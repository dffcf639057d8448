//! How much a guest can hold.

use std::fs;

use super::super::ShareOptions;
use super::client::Client;
use super::{Body, ROOT, op};

fn client(max_files: usize) -> Client {
    let client = Client::new(ShareOptions {
        read_only: false,
        max_files,
    });
    for number in 0..8 {
        fs::write(client.path(&number.to_string()), "").unwrap();
    }
    client
}

/// Descriptors of this process that are of files in the share.
fn open_files(client: &Client) -> usize {
    let shared = client.path("");
    let links = fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .filter(|target| target.starts_with(&shared) && *target != shared)
        .count()
}

#[test]
fn a_guest_that_knows_of_too_many_files_is_told_of_no_more() {
    let mut client = client(3);
    let [one, _, three] = ["0", "1", "2"].map(|name| client.lookup(ROOT, name).unwrap());
    assert_eq!(client.lookup(ROOT, "3"), Err(libc::ENFILE));
    assert_eq!(client.open(three, libc::O_RDONLY), Err(libc::ENFILE));
    assert_eq!(client.lookup(ROOT, "0"), Ok(one), "that one it knows");
    client.forget(one, 1);
    assert_eq!(
        client.lookup(ROOT, "3"),
        Err(libc::ENFILE),
        "it was told twice"
    );
    client.forget(one, 1);
    client.lookup(ROOT, "3").unwrap();
    assert_eq!(client.open(one, libc::O_RDONLY), Err(libc::ENFILE));
    client.forget(three, 1);
    client.call(op::DESTROY, ROOT, &Body::default()).unwrap();
    for name in ["4", "5", "6"] {
        client.lookup(ROOT, name).unwrap();
    }
    assert_eq!(client.lookup(ROOT, "7"), Err(libc::ENFILE));
}

#[test]
fn a_directory_can_be_listed_whatever_the_guest_may_know() {
    let mut client = client(4);
    let entries = client.entries();
    assert_eq!(entries.len(), 8);
    // One descriptor is that of the open directory.
    assert_eq!(entries.iter().filter(|(_, node)| *node != 0).count(), 3);
    for (_, node) in &entries {
        client.forget(*node, 1);
    }
    assert_eq!(
        client
            .entries()
            .iter()
            .filter(|(_, node)| *node != 0)
            .count(),
        3
    );
}

#[test]
fn what_a_guest_makes_it_must_be_allowed_to_know() {
    let mut client = client(2);
    let made = client.create("new", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(
        client.create("more", libc::O_RDWR, 0o600),
        Err(libc::ENFILE)
    );
    let close = Body::longs([made.handle, 0, 0]);
    client.call(op::RELEASE, made.node, &close).unwrap();
    assert_eq!(
        client.call(op::RELEASE, made.node, &close),
        Err(libc::EBADF),
        "and closing twice frees nothing"
    );
    assert_eq!(
        client.create("more", libc::O_RDWR, 0o600),
        Err(libc::ENFILE)
    );
    client.forget(made.node, 1);
    client.create("more", libc::O_RDWR, 0o600).unwrap();
}

#[test]
fn the_descriptors_are_those_that_are_counted() {
    let mut client = client(100);
    let node = client.lookup(ROOT, "0").unwrap();
    assert_eq!(open_files(&client), 1);
    let mut opened = Vec::new();
    let refused = loop {
        match client.open(node, libc::O_RDONLY) {
            Ok(handle) => opened.push(handle),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, opened.len()), (libc::ENFILE, 99));
    assert_eq!(open_files(&client), 100);
    for handle in opened {
        let close = Body::longs([handle, 0, 0]);
        client.call(op::RELEASE, node, &close).unwrap();
    }
    client.forget(node, 1);
    assert_eq!(open_files(&client), 0);
}
