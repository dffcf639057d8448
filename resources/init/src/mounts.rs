//! What a process expects to be mounted, and the root file system underneath.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use init_lib::spec::{self, key};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::{Errno, pread};
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use rustix::process::{Pid, Signal, chdir, chroot, kill_process_group};

use crate::Failure;
use crate::devices::names;
use crate::modules::{Modules, read_at};

/// Where the root file system is until it is the root.
const NEW_ROOT: &str = "/mvm/root";
/// How long a disk may take to appear. One that is there appears with its driver.
const PATIENCE: u32 = 500;
const TICK: Duration = Duration::from_millis(10);

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// The kernel's own file systems, which everything else needs.
pub fn kernel() -> Result<(), Failure> {
    for (kind, path, flags) in [
        ("proc", "/proc", PLAIN),
        ("sysfs", "/sys", PLAIN),
        ("devtmpfs", "/dev", MountFlags::NOSUID),
    ] {
        make_directory(path);
        match mount(kind, path, kind, flags, None) {
            // The kernel may have mounted /dev by itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(Failure::new("cannot mount", path, errno)),
        }
    }
    Ok(())
}

/// The file systems of a running system, over what the root has there.
pub fn system() {
    for (kind, path, flags, data) in [
        (
            "devpts",
            "/dev/pts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"gid=5,mode=620,ptmxmode=666",
        ),
        (
            "tmpfs",
            "/dev/shm",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=1777",
        ),
        (
            "tmpfs",
            "/run",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=755",
        ),
        (
            "tmpfs",
            "/tmp",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=1777",
        ),
    ] {
        make_directory(path);
        if let Err(errno) = mount(kind, path, kind, flags, data) {
            crate::log(&format!("cannot mount {path}: {errno}"));
        }
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ] {
        // There already, most likely.
        let _ = symlinkat(target, CWD, link);
    }
}

/// Mounts the root file system that the spec names, if any, and makes it the root.
pub fn enter_root(spec: &[u8], modules: Option<&Modules>) -> Result<(), Failure> {
    let Some(root) = spec::value(spec, key::ROOT) else {
        return Ok(());
    };
    let root = String::from_utf8_lossy(root);
    let (mode, source) = root.split_once(':').unwrap_or(("rw", &root));
    make_directory(NEW_ROOT);
    let flags = if mode == "ro" {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    match source.strip_prefix("tag:") {
        Some(tag) => mount(tag, NEW_ROOT, "virtiofs", flags, None)
            .map_err(|errno| Failure::new("cannot mount the shared root", tag, errno))?,
        None => mount_disk(source, flags, modules)?,
    }
    for path in ["/proc", "/sys", "/dev"] {
        let target = format!("{NEW_ROOT}{path}");
        make_directory(&target);
        mount_move(path, target.as_str()).map_err(|errno| {
            Failure::new("the root file system has no directory for", path, errno)
        })?;
    }
    forget_initramfs();
    let enter = chdir(NEW_ROOT)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"));
    enter.map_err(|errno| Failure::new("cannot enter", source, errno))
}

fn mount_disk(device: &str, flags: MountFlags, modules: Option<&Modules>) -> Result<(), Failure> {
    let mut waited = 0;
    let disk = loop {
        match openat(CWD, device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(disk) => break disk,
            Err(_) if waited < PATIENCE => {
                waited += 1;
                crate::run::sleep(TICK);
            }
            Err(errno) => {
                return Err(Failure::new(
                    "no root disk (does the kernel, or its initrd, have virtio_blk?)",
                    device,
                    errno,
                ));
            }
        }
    };
    let known = kind_of(|offset, bytes| pread(&disk, bytes, offset));
    drop(disk);
    let kinds = match known {
        Some(kind) => {
            if let Some(modules) = modules {
                modules.load(format!("fs-{kind}").as_bytes());
            }
            [kind.to_owned()].into()
        }
        None => disk_file_systems(),
    };
    let cmdline = read_at(CWD, "/proc/cmdline").unwrap_or_default();
    let options = root_flags(&cmdline).and_then(|options| CString::new(options).ok());
    let mut last = Errno::INVAL;
    for kind in &kinds {
        match mount(device, NEW_ROOT, kind.as_str(), flags, options.as_deref()) {
            Ok(()) => return Ok(()),
            // What is not this kind is INVAL; another error is worth more.
            Err(errno) if errno != Errno::INVAL || last == Errno::INVAL => last = errno,
            Err(_) => {}
        }
    }
    let what = match kinds.as_slice() {
        [kind] => format!("cannot mount the {kind} file system on"),
        _ => "cannot find a file system that the kernel knows on".to_owned(),
    };
    Err(Failure::new(&what, device, last))
}

/// What the kernel command line says the root file system is to be mounted with, as where the kernel mounts it.
fn root_flags(cmdline: &[u8]) -> Option<&[u8]> {
    let words = cmdline.split(u8::is_ascii_whitespace);
    words
        .filter_map(|word| word.strip_prefix(b"rootflags="))
        .next_back()
}

/// The kind of file system, by the magic number in its superblock.
fn kind_of(read: impl Fn(u64, &mut [u8]) -> rustix::io::Result<usize>) -> Option<&'static str> {
    let magics: [(u64, &[u8], &str); 6] = [
        (1080, b"\x53\xef", "ext4"),
        (0, b"hsqs", "squashfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (0, b"XFSB", "xfs"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    ];
    magics.into_iter().find_map(|(offset, magic, kind)| {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..magic.len()];
        let read = read(offset, bytes).ok()?;
        (read == magic.len() && bytes == magic).then_some(kind)
    })
}

/// Those that the kernel has at this moment.
fn disk_file_systems() -> Vec<String> {
    let text = read_at(CWD, "/proc/filesystems").unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let on_disks = text.lines().filter_map(|line| line.strip_prefix('\t'));
    on_disks.map(str::to_owned).collect()
}

/// Mounts the directories that the host shares.
pub fn shares(spec: &[u8]) -> Result<(), Failure> {
    for share in spec::values(spec, key::SHARE) {
        let share = String::from_utf8_lossy(share);
        let mut parts = share.splitn(3, ':');
        let (Some(mode), Some(tag), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        make_path(path);
        if statat(CWD, path, AtFlags::empty()).is_err()
            && let Some((parent, _)) = path.rsplit_once('/')
        {
            // The root file system is read-only: the directory is made on top of it.
            let _ = mount("tmpfs", parent, "tmpfs", MountFlags::NODEV, c"mode=755");
            make_path(path);
        }
        let flags = if mode == "ro" {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        mount(tag, path, "virtiofs", flags, None)
            .map_err(|errno| Failure::new("cannot mount the share", tag, errno))?;
    }
    Ok(())
}

/// Gives the memory of the initramfs back: all of it but the modules, which may be asked for yet.
fn forget_initramfs() {
    let keep = |path: &str| {
        matches!(
            path,
            "/mvm" | "/lib" | "/usr" | "/lib/modules" | "/usr/lib" | "/usr/lib/modules"
        )
    };
    let Ok(root) = statat(CWD, "/", AtFlags::SYMLINK_NOFOLLOW) else {
        return;
    };
    for path in ["", "/lib", "/usr", "/usr/lib"] {
        for name in names(if path.is_empty() { "/" } else { path }) {
            let inside = format!("{path}/{name}");
            if !keep(&inside) {
                remove(&inside, root.st_dev, 32);
            }
        }
    }
}

/// Removes a tree, as far as it is on `device`.
fn remove(path: &str, device: u64, depth: u32) {
    let Ok(stat) = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) else {
        return;
    };
    if stat.st_dev != device || depth == 0 {
        return;
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let _ = unlinkat(CWD, path, AtFlags::empty());
        return;
    }
    for name in names(path) {
        remove(&format!("{path}/{name}"), device, depth - 1);
    }
    let _ = unlinkat(CWD, path, AtFlags::REMOVEDIR);
}

/// Ends all processes and writes everything out.
pub fn settle() {
    // kill(-1): every process but this one.
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
    rustix::fs::sync();
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
}

fn make_directory(path: &str) {
    // There already, or the mount that follows says why not.
    let _ = mkdirat(CWD, path, Mode::from_raw_mode(0o755));
}

fn make_path(path: &str) {
    for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
        make_directory(&path[..at]);
    }
    make_directory(path);
}
