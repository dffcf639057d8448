//! The lab's initramfs: busybox, its init, the modules of the kernel it runs on, the binaries under test with the
//! libraries they need, and the guest files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::cpio::Archive;
use crate::debian::{self, Program};
use crate::guest::{Guests, Tiny};
use crate::workspace;

/// What a host has beside busybox: the helper of `--net user`, what the README's networks are made with, what disk
/// images are, and what breaks disks.
pub const TOOLS: [Program; 5] = [
    Program("passt", "passt"),
    Program("ip", "iproute2"),
    Program("nft", "nftables"),
    Program("qemu-img", "qemu-utils"),
    Program("dmsetup", "dmsetup"),
];

/// A file that the lab gets: where it is there, and here.
pub type Files = BTreeMap<String, PathBuf>;

/// passt, when it is run by root, becomes nobody.
const PASSWD: &[u8] = b"root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";

/// What a lab is made of.
#[derive(Debug)]
pub struct Image {
    /// The kernel it runs on.
    pub kernel: PathBuf,
    /// The initramfs, in memory: nothing is left to be cleaned up.
    pub initrd: File,
}

/// Where guest files are in the lab. The same names as `cargo xtask guest` prints.
pub fn guest_files(guests: &Guests, tiny: Option<&Tiny>) -> Result<Files> {
    let stock = guests.stock()?;
    let mut files = Files::from([
        ("guest/vmlinuz".to_owned(), stock.vmlinuz),
        ("guest/vmlinux".to_owned(), stock.vmlinux),
        ("guest/initrd".to_owned(), stock.initrd),
        ("guest/rootfs".to_owned(), guests.rootfs()?),
    ]);
    for (name, image) in guests.compressed()? {
        files.insert(format!("guest/{name}"), image);
    }
    if let Some(tiny) = tiny {
        files.insert("guest/tiny-vmlinux".to_owned(), tiny.vmlinux.clone());
        files.insert("guest/tiny-bzimage".to_owned(), tiny.bzimage.clone());
    }
    Ok(files)
}

/// Makes the lab's image: the small kernel where it has been built, for it boots in a fifth of the time, and the
/// stock one otherwise.
pub fn make(guests: &Guests, tiny: Option<&Tiny>, mut files: Files) -> Result<Image> {
    let memory = memfd_create("lab-initrd", MemfdFlags::empty()).context("memfd_create")?;
    let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, File::from(memory)));
    let resources = workspace::root().join("resources/lab");
    for name in [
        "dev", "proc", "sys", "tmp", "run", "work", "out", "sbin", "etc",
    ] {
        archive.directory(name)?;
    }
    archive.bytes("init", 0o755, &fs::read(resources.join("init"))?)?;
    archive.bytes("etc/passwd", 0o644, PASSWD)?;
    archive.symlink("sbin/modprobe", "../bin/busybox")?;
    let busybox = guests.busybox()?;
    archive.tree("bin", &busybox)?;
    let kernel = match tiny {
        Some(tiny) => tiny.vmlinux.clone(),
        None => {
            let stock = guests.stock()?;
            archive.tree("", &stock.lab_modules)?;
            archive.bytes("etc/modules", 0o644, &fs::read(resources.join("modules"))?)?;
            stock.vmlinuz
        }
    };
    files.insert("bin/xtask".to_owned(), std::env::current_exe()?);
    debian::require(&TOOLS)?;
    for Program(name, _) in TOOLS {
        let program = debian::find(name).context(name)?;
        files.insert(format!("bin/{name}"), program);
    }
    let programs: Vec<_> = files
        .values()
        .filter(|file| is_elf_program(file))
        .cloned()
        .collect();
    for program in programs {
        for library in libraries(&program)? {
            let place = library.to_str().context("a library's path is not UTF-8")?;
            files
                .entry(place.trim_start_matches('/').to_owned())
                .or_insert(library.clone());
        }
    }
    for (place, file) in &files {
        archive.file(place, file)?;
    }
    let initrd = archive
        .finish()?
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    Ok(Image { kernel, initrd })
}

/// Whether a file is an ELF executable or library of a user space (a kernel is one of those only in form: it has no
/// interpreter, and so no libraries).
fn is_elf_program(file: &Path) -> bool {
    let mut head = [0; 18];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut head));
    // e_type: ET_DYN is 3, which every position-independent program is.
    read.is_ok() && head.starts_with(b"\x7fELF") && head[16] == 3
}

/// The shared libraries that a program loads, and its loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8(output.stdout)?;
    if text.contains("not found") {
        bail!(
            "{} needs libraries that are not here: {text}",
            program.display()
        );
    }
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let words = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}
