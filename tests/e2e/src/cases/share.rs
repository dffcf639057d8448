//! Shared directories with real guests: both sides see the same, and a guest that looks for a way out of one
//! finds none.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;

use super::refusals::refused;
use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Mvm, NOBODY, Outcome};

tests! { "share":
    LONG busy_programs,
    LONG a_directory_swapped_for_a_link,
    LONG stock_kernel,
    SHORT mounted_by_the_guest,
    SHORT both_sides_see_the_same,
    SHORT two_of_them,
    SHORT read_only,
    SHORT links_and_names_lead_nowhere,
    SHORT forged_handles,
    SHORT an_ordinary_user,
    SHORT more_files_than_mvm_may_open,
    SHORT killed_it_leaves_nothing,
    SHORT refused_ones,
}

/// What all sums of a tree are, sorted: files, links and directories.
const SUMS: &str = "find . -type f -exec sha256sum {} + | sort; find . -type l | sort | \
                    while read link; do echo $link $(readlink $link); done; find . -type d | sort; \
                    find . -exec stat -c '%n %a %h' {} + | sort";

/// The sums as this side sees them.
fn sums(directory: &Path) -> Result<String> {
    let output = Command::new("sh")
        .args(["-c", SUMS])
        .current_dir(directory)
        .output()?;
    ensure!(
        output.status.success(),
        "the sums of {}",
        directory.display()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A directory to share.
fn shared(context: &Context, name: &str) -> Result<PathBuf> {
    let path = context.path(name);
    fs::create_dir(&path)?;
    Ok(path)
}

/// A guest of the small kernel, on an image that it cannot change, with a share called `src`.
fn guest<'a>(context: &'a Context, directory: &Path, options: &str) -> Result<Mvm<'a>> {
    on(context, Kernel::TinyElf, directory, options)
}

fn on<'a>(
    context: &'a Context,
    kernel: Kernel,
    directory: &Path,
    options: &str,
) -> Result<Mvm<'a>> {
    let mut rootfs = context.guest("rootfs").into_os_string();
    rootfs.push(",ro");
    let mvm = context.boot(kernel)?.arg("--rootfs").arg(rootfs);
    Ok(share(mvm, directory, "src", options))
}

fn share<'a>(mvm: Mvm<'a>, directory: &Path, tag: &str, options: &str) -> Mvm<'a> {
    let share = format!("{},tag={tag}{options}", directory.display());
    mvm.arg("--share").arg(share)
}

/// The sums that a guest printed behind a line `sums`.
fn printed(outcome: &Outcome) -> Result<&str> {
    let (_, sums) = outcome
        .stdout
        .split_once("sums\n")
        .context("the guest printed no sums")?;
    Ok(sums)
}

/// Fails unless a guest saw the sums that are seen here.
fn same_sums(guest: &str, directory: &Path) -> Result<()> {
    let host = sums(directory)?;
    let lacks = |lines: &str, others: &str| {
        let found = others
            .lines()
            .find(|line| !lines.lines().any(|it| it == *line));
        found.unwrap_or("nothing").to_owned()
    };
    ensure!(
        guest == host,
        "in {} the guest does not see {}, and the host not {}",
        directory.display(),
        lacks(guest, &host),
        lacks(&host, guest)
    );
    Ok(())
}

fn both_sides_see_the_same(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    fs::create_dir_all(directory.join("a/b"))?;
    for number in 0..50_usize {
        let bytes = vec![number.to_le_bytes()[0]; number * 1777];
        fs::write(directory.join(format!("a/b/{number}")), bytes)?;
    }
    fs::write(directory.join("gone"), "")?;
    symlink("a/b", directory.join("link"))?;
    let script = "set -e; cd /mnt/src; test $(ls a/b | wc -l) = 50; rm gone; mv a/b c
        dd if=/dev/urandom of=big bs=64k count=100 2>/dev/null; cp big c/copy; cmp big c/copy
        dd if=big of=part bs=1000 skip=7 count=900 2>/dev/null; truncate -s 100000 big
        echo more >>c/3; ln c/3 hard; ln -s /etc/passwd outside; chmod 640 hard; chmod 750 c
        touch -d '2020-02-02 02:02:02' c/4; mkfifo fifo; rm fifo; sync
        ! mknod device c 1 3 2>/dev/null; echo sums; ";
    let outcome = guest(context, &directory, "")?
        .shell(&format!("{script}{SUMS}"))
        .exits_with(0)?;
    same_sums(printed(&outcome)?, &directory)?;
    ensure!(fs::metadata(directory.join("c/4"))?.mtime() == 1_580_608_922);
    ensure!(fs::metadata(directory.join("hard"))?.nlink() == 2);
    ensure!(!directory.join("gone").exists());
    Ok(())
}

fn stock_kernel(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    fs::write(directory.join("from the host"), "hello")?;
    let outcome = on(context, Kernel::StockBzimage, &directory, "")?
        .shell(&format!(
            "cd /mnt/src; cat from*; cp from* back; echo; mkdir d; echo sums; {SUMS}"
        ))
        .exits_with(0)?;
    outcome.says("hello\n")?;
    same_sums(printed(&outcome)?, &directory)?;
    ensure!(fs::read(directory.join("back"))? == b"hello");
    Ok(())
}

fn mounted_by_the_guest(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    // Unmounted and mounted again, and what the host has changed in the meantime is seen.
    let outcome = guest(context, &directory, "")?
        .shell(
            "set -e; umount /mnt/src; mkdir /tmp/m; mount -t virtiofs src /tmp/m
             echo one >/tmp/m/x; umount /tmp/m; mount -t virtiofs -o ro src /tmp/m; cat /tmp/m/x
             ! mount -t virtiofs other /mnt/src; cat /sys/fs/virtiofs/*/tag 2>/dev/null || echo src",
        )
        .exits_with(0)?;
    outcome.says("one\nsrc\n")?;
    ensure!(fs::read(directory.join("x"))? == b"one\n");
    Ok(())
}

fn two_of_them(context: &Context) -> Result<()> {
    let (one, two) = (shared(context, "one")?, shared(context, "two")?);
    fs::write(two.join("file"), "of two")?;
    let mvm = guest(context, &one, "")?;
    let outcome = share(mvm, &two, "other", ",ro")
        .shell("cp /mnt/other/file /mnt/src; touch /mnt/other/new; ls /mnt")
        .exits_with(0)?;
    outcome.says("other\nsrc\n")?;
    ensure!(outcome.stderr.contains("Read-only file system"));
    ensure!(fs::read(one.join("file"))? == b"of two");
    ensure!(!two.join("new").exists());
    Ok(())
}

fn read_only(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    fs::write(directory.join("file"), "as it was")?;
    fs::set_permissions(directory.join("file"), fs::Permissions::from_mode(0o666))?;
    fs::create_dir(directory.join("dir"))?;
    let before = sums(&directory)?;
    // A guest that mounts it to be written all the same.
    let outcome = guest(context, &directory, ",ro")?
        .shell(
            "umount /mnt/src; mount -t virtiofs src /mnt/src; cd /mnt/src; cat file
             grep -c 'src /mnt/src virtiofs rw' /proc/mounts
             (echo x >file) && exit 1; (echo x >new) && exit 2; rm file && exit 3; mkdir n && exit 4
             rmdir dir && exit 5; mv file n && exit 6; ln file n && exit 7; ln -s x n && exit 8
             chmod 600 file && exit 9; touch file && exit 10; mkfifo n && exit 11
             truncate -s 1 file && exit 12; chown 5 file && exit 13; (echo x >>file) && exit 14
             echo refused",
        )
        .exits_with(0)?;
    outcome.says("as it was1\nrefused\n")?;
    ensure!(
        outcome.stderr.matches("Read-only file system").count() == 14,
        "{}",
        outcome.stderr
    );
    ensure!(sums(&directory)? == before, "something changed");
    Ok(())
}

/// A share with a directory beside it in which there is a secret.
fn with_a_secret(context: &Context) -> Result<PathBuf> {
    let directory = shared(context, "s")?;
    let outside = shared(context, "outside")?;
    fs::write(outside.join("file"), "secret")?;
    Ok(directory)
}

fn links_and_names_lead_nowhere(context: &Context) -> Result<()> {
    let directory = with_a_secret(context)?;
    let outside = context.path("outside");
    symlink("../outside/file", directory.join("relative"))?;
    symlink(outside.join("file"), directory.join("absolute"))?;
    symlink("..", directory.join("up"))?;
    symlink("/", directory.join("root"))?;
    symlink(&outside, directory.join("dir"))?;
    let outside = outside.display();
    let outcome = guest(context, &directory, "")?
        .shell(&format!(
            "cd /mnt/src; cat relative absolute dir/file up/outside/file root{outside}/file ../outside/file
             ls up; echo found; cat root/etc/passwd; ls dir/; ls -a /mnt/src/..
             ln -s {outside} made; cat made/file; ln -s ../../../../../../../.. top; cat top{outside}/file
             ln dir hard && ls hard/; ln absolute file; cat file; mv made/../outside/file .
             mkdir deep; cd deep; mv ../deep ../moved; cat ../../outside/file; cat /proc/self/cwd/../../outside/file
             echo >absolute; echo >relative; echo >dir/new; true"
        ))
        .exits_with(0)?;
    outcome.does_not_say("secret")?;
    // Links are followed in the guest: to what is there.
    outcome.says("found\nroot::0:0:")?;
    let secret = context.path("outside/file");
    ensure!(fs::read(secret)? == b"secret", "the guest wrote outside");
    ensure!(fs::read_dir(context.path("outside"))?.count() == 1);
    Ok(())
}

/// Where a directory is one moment, there is a link to another the next, and each way the guest may find it.
fn a_directory_swapped_for_a_link(context: &Context) -> Result<()> {
    let directory = with_a_secret(context)?;
    fs::create_dir(directory.join("dir"))?;
    fs::write(directory.join("dir/file"), "inside")?;
    symlink("../outside", directory.join("link"))?;
    let ended = AtomicBool::new(false);
    let swap = || -> Result<u64> {
        let (dir, link) = (directory.join("dir"), directory.join("link"));
        let mut times = 0;
        while !ended.load(Ordering::Relaxed) {
            renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE)?;
            times += 1;
            // Of two that are swapped as fast as possible, one is there too seldom to be of use.
            if times % 16 == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        Ok(times)
    };
    let (outcome, times) = thread::scope(|scope| {
        let swaps = scope.spawn(swap);
        let outcome = guest(context, &directory, "").and_then(|mvm| {
            mvm.shell(
                "cd /mnt/src; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo 2 >/proc/sys/vm/drop_caches
                 cat dir/file link/file 2>/dev/null; echo new >dir/new-$i 2>/dev/null; rm -f dir/new-$i; done
                 echo; true",
            )
            .exits_with(0)
        });
        ended.store(true, Ordering::Relaxed);
        let times = swaps.join().map_err(|_| anyhow::anyhow!("panicked"));
        anyhow::Ok((outcome?, times??))
    })?;
    ensure!(times > 100, "it was swapped {times} times only");
    outcome.does_not_say("secret")?;
    outcome.says("inside")?;
    ensure!(fs::read_dir(context.path("outside"))?.count() == 1);
    ensure!(fs::read(context.path("outside/file"))? == b"secret");
    Ok(())
}

fn forged_handles(context: &Context) -> Result<()> {
    let directory = with_a_secret(context)?;
    fs::write(directory.join("inside"), "inside")?;
    let outcome = guest(context, &directory, "")?
        .shell("cat /mnt/src/inside; /test/probe files handles /mnt/src")
        .exits_with(0)?;
    outcome.does_not_say("secret")?;
    // The kernel asks for none that it does not know, and the device would not know them.
    outcome.says("handles: ")?;
    outcome.says(" refused")
}

fn busy_programs(context: &Context) -> Result<()> {
    let (one, two) = (shared(context, "one")?, shared(context, "two")?);
    for name in ["a", "b"] {
        fs::create_dir(one.join(name))?;
        fs::create_dir(two.join(name))?;
    }
    let mvm = guest(context, &one, "")?;
    // Four at a time, two to a share; what the guest's kernel remembers is dropped now and then.
    let outcome = share(mvm, &two, "two", "")
        .args("--cpus 2")
        .shell(&format!(
            "for seed in 1 2 3 4; do
               case $seed in 1) d=src/a;; 2) d=src/b;; 3) d=two/a;; 4) d=two/b;; esac
               (/test/probe files exercise $seed 800 /mnt/$d || touch /tmp/failed) &
             done
             for i in 1 2 3 4 5 6 7 8; do sleep 1; echo 3 >/proc/sys/vm/drop_caches; done; wait
             test ! -e /tmp/failed || exit 1
             cd /mnt/two; ({SUMS}) >/mnt/src/sums-of-two; cd /mnt/src; echo sums; {SUMS}"
        ))
        .exits_with(0)?;
    ensure!(outcome.stdout.matches("done: ").count() == 4);
    same_sums(printed(&outcome)?, &one)?;
    let of_two = fs::read_to_string(one.join("sums-of-two"))?;
    same_sums(&of_two, &two)?;
    ensure!(of_two.lines().count() > 200, "hardly any files are left");
    Ok(())
}

fn an_ordinary_user(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    chown(context.path(""), Some(NOBODY), Some(NOBODY))?;
    chown(&directory, Some(NOBODY), Some(NOBODY))?;
    fs::write(directory.join("roots"), "root's")?;
    fs::set_permissions(directory.join("roots"), fs::Permissions::from_mode(0o600))?;
    let outcome = guest(context, &directory, "")?
        .user(NOBODY)
        .shell(
            "cd /mnt/src; echo mine >mine; mkdir d; ln mine hard; ln -s mine link; chmod 4711 mine
             cat roots || echo denied; chown 0 mine || echo kept; mknod dev c 1 3 || echo none
             chmod 666 roots || echo unchanged; umask 0; touch all; rm -r d; mv roots theirs; ls",
        )
        .exits_with(0)?;
    outcome.says("denied\nkept\nnone\nunchanged\n")?;
    outcome.says("all\nhard\nlink\nmine\ntheirs\n")?;
    for name in ["mine", "all", "link"] {
        let made = fs::symlink_metadata(directory.join(name))?;
        ensure!(made.uid() == NOBODY, "{name} belongs to {}", made.uid());
    }
    let mode = |name| fs::metadata(directory.join(name)).map(|made| made.mode() & 0o7777);
    ensure!(mode("all")? == 0o666, "whatever mvm's umask");
    ensure!(mode("theirs")? == 0o600);
    Ok(())
}

/// The guest is told that there are too many, and goes on, and so does mvm.
fn more_files_than_mvm_may_open(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    for number in 0..600 {
        fs::write(directory.join(number.to_string()), "")?;
    }
    let limited = context.path("limited");
    let mvm = guest(context, &directory, "")?.shell(
        "cd /mnt/src; echo * | wc -w; ls -l >/dev/null 2>/tmp/errors && exit 1; tail -n 1 /tmp/errors
         for i in 1 2 3 4 5; do cat * 2>/dev/null; touch new-$i; done
         echo 2 >/proc/sys/vm/drop_caches; cat 599 && touch last && echo goes on",
    );
    let program = mvm.program().display();
    fs::write(
        &limited,
        format!("#!/bin/sh\nulimit -n 500\nexec {program} \"$@\"\n"),
    )?;
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755))?;
    let limited = mvm
        .finish()
        .into_iter()
        .fold(Mvm::new(context, &limited), Mvm::arg);
    let outcome = limited.exits_with(0)?;
    outcome.says("600\n")?;
    outcome.says("Too many open files in system")?;
    outcome.says("goes on")
}

fn killed_it_leaves_nothing(context: &Context) -> Result<()> {
    let directory = shared(context, "s")?;
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut vm = guest(context, &directory, "")?
        .shell("cd /mnt/src; echo half >file; exec 3<file; echo there; sleep 1000")
        .spawn()?;
    vm.wait_for("there")?;
    vm.signal(Signal::KILL)?;
    let outcome = vm.wait()?;
    ensure!(outcome.status.code().is_none(), "it was not killed");
    // What the guest had written is there, and no more, and nobody holds it.
    ensure!(fs::read(directory.join("file"))? == b"half\n");
    ensure!(fs::read_dir(&directory)?.count() == 1);
    ensure!(fs::read_dir(context.path(""))?.count() == 1);
    ensure!(fs::read_to_string("/proc/mounts")? == mounts);
    let path = directory.to_string_lossy().into_owned();
    for process in fs::read_dir("/proc")? {
        let line = fs::read(process?.path().join("cmdline")).unwrap_or_default();
        ensure!(
            !String::from_utf8_lossy(&line).contains(&path),
            "a process is left"
        );
    }
    Ok(fs::remove_dir_all(directory)?)
}

fn refused_ones(context: &Context) -> Result<()> {
    let file = context.image("file", 1)?;
    let file = file.display();
    for (shares, text) in [
        ("missing,tag=a", "share missing: No such file or directory"),
        (&format!("{file},tag=a")[..], "Not a directory"),
        ("/tmp", "share /tmp has no tag; write it as PATH,tag=NAME"),
        ("/tmp,tag=", "is 0 bytes; it can have 1 to 36"),
        (&format!("/tmp,tag={}", "x".repeat(37)), "is 37 bytes"),
        ("/tmp,tag=a:b", "may contain only letters"),
        ("/tmp,tag=a,write", "unknown key 'write'"),
        ("/tmp,tag=a /,tag=a", "two shares have the tag 'a'"),
    ] {
        let boot = context.boot(Kernel::TinyElf)?;
        let mvm = shares
            .split(' ')
            .fold(boot, |mvm, share| mvm.arg("--share").arg(share));
        refused(&mvm, text)?;
    }
    Ok(())
}
