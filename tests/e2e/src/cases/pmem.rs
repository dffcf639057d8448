//! Files that the guest has as memory: what it flushes is there whatever happens, pages are shared between VMs and not
//! copied in the guest, and a file that goes away ends the VM.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Mvm, Vm};

tests! { "pmem":
    LONG root_with_dax_written_shared_and_truncated,
}

const MIB: u64 = 1 << 20;
/// Bytes that the first guest writes.
const BLOB: u64 = 8 * MIB;

/// The small kernel with the file at `path` as its root, used where it is.
fn boot<'a>(context: &'a Context, path: &Path, options: &str) -> Result<Mvm<'a>> {
    let mut pmem = OsString::from(path);
    pmem.push(options);
    let mvm = context.boot(Kernel::TinyElf)?.arg("--pmem").arg(pmem);
    Ok(mvm.append("rootflags=dax"))
}

/// What of a file the process has mapped and in memory, and what of that nobody else has, in bytes.
fn mapped(vm: &Vm, path: &Path) -> Result<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vm.pid()))?;
    let name = path.to_str().context("a path that is not UTF-8")?;
    let mut lines = smaps.lines().skip_while(|line| !line.ends_with(name));
    lines.next().context("the file is not mapped")?;
    let (mut resident, mut private) = (0, 0);
    for line in lines {
        let mut words = line.split_whitespace();
        let (Some(key), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<u64>)) else {
            break;
        };
        match key {
            "Rss:" => resident += kib << 10,
            "Private_Clean:" | "Private_Dirty:" => private += kib << 10,
            _ => {}
        }
    }
    Ok((resident, private))
}

fn root_with_dax_written_shared_and_truncated(context: &Context) -> Result<()> {
    let path = context.rootfs()?;
    // The command's init mounts the root, and killing mvm takes nothing of what was flushed.
    let mut writer = boot(context, &path, ",root")?
        .shell(&format!(
            "grep ' / ' /proc/mounts; /test/disk-write {}; echo flushed; sleep 1000",
            BLOB / (64 << 10)
        ))
        .spawn()?;
    writer.wait_for("flushed")?;
    let said = writer.stdout();
    let mounted = said.lines().find(|line| line.starts_with("/dev/pmem0 / "));
    ensure!(
        mounted.is_some_and(|line| line.contains("rw") && line.contains("dax")),
        "its root: {mounted:?}"
    );
    writer.signal(Signal::KILL)?;
    writer.wait()?;

    // The kernel's own mount, in two VMs at once.
    let before = Sha256::digest(fs::read(&path)?);
    let reader = || -> Result<Vm> {
        let mvm = boot(context, &path, ",ro,root")?.script("pmem");
        mvm.spawn()
    };
    let mut readers = [reader()?, reader()?];
    for vm in &readers {
        vm.wait_for("waiting")?;
        let said = vm.stdout();
        let root = vm.wait_for_line("root: ")?;
        ensure!(
            root.starts_with("/dev/root / ext4 ro") && root.contains("dax"),
            "{root}"
        );
        ensure!(
            said.contains("/data/blob: OK"),
            "what was flushed is gone:\n{said}"
        );
        let cached = vm.wait_for_line("cached: ")?;
        let cached: i64 = cached.trim_end_matches(" kB").parse()?;
        ensure!(
            cached << 10 < i64::try_from(BLOB / 8)?,
            "the guest has a copy of its own: its page cache grew by {cached} kB"
        );
    }
    ensure!(
        Sha256::digest(fs::read(&path)?) == before,
        "a reader has written"
    );
    for vm in &readers {
        let (resident, private) = mapped(vm, &path)?;
        ensure!(
            resident >= BLOB && private < MIB,
            "of the file, {resident} bytes are in memory, {private} of them for one VM alone"
        );
    }

    // Guests at rest: nothing makes KVM look for the pages.
    File::options().write(true).open(&path)?.set_len(MIB)?;
    for vm in &mut readers {
        let outcome = vm.exits_with(125)?;
        let said = outcome.stderr.trim();
        ensure!(
            said.contains("was truncated") && said.lines().count() == 1,
            "not one line of it: {said}"
        );
    }
    Ok(())
}
