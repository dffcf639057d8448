//! The tiny guest by which a host is judged: 64 KiB of memory, one vCPU in long mode at CPL 0, and a few
//! instructions that every stock kernel executes before it reaches its init.
//!
//! Each program ends in `hlt`, which leaves KVM_RUN where there is no in-kernel interrupt controller, and
//! leaves in RAX what the manual says it must. Intel SDM vol. 3 §9.8.5 (long mode), §6.14 (64-bit IDT).

use std::arch::asm;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_INTERNAL_ERROR_EMULATION, KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment,
    kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Evidence, Outcome, ProbeError};

const MEMORY: usize = 64 << 10;
/// Guest physical and, since the first 2 MiB are mapped one to one, linear addresses.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const BREAKPOINT_HANDLER: u64 = 0x7000;
const DATA: u64 = 0x8000;
const STACK_TOP: u64 = 0xa000;

const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;
/// Vector 3, #BP.
const BREAKPOINT_GATE: u64 = IDT + 3 * 16;

/// `dec rcx; jnz $-3; hlt`: the same two instructions that [`time_here`] runs.
const LOOP: &[u8] = &[0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];
/// Enough to outlast entering and leaving the guest, little enough for an interpreter of a million
/// instructions a second.
const TURNS: u64 = 20_000;
const REPEATS: usize = 3;

/// An instruction to try, with what RAX must hold when the guest halts.
struct Trial {
    name: &'static str,
    on_this_cpu: fn() -> bool,
    code: &'static [u8],
    expected: u64,
}

const MARK: u64 = 0x1234_5678;

const TRIALS: &[Trial] = &[
    Trial {
        name: "popcnt",
        on_this_cpu: || is_x86_feature_detected!("popcnt"),
        // popcnt rax, rbx; hlt
        code: &[0xf3, 0x48, 0x0f, 0xb8, 0xc3, 0xf4],
        expected: MARK.count_ones() as u64,
    },
    Trial {
        name: "cmpxchg16b",
        on_this_cpu: || is_x86_feature_detected!("cmpxchg16b"),
        // lock cmpxchg16b [rdi]; mov rax, [rdi]; hlt
        code: &[0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0x48, 0x8b, 0x07, 0xf4],
        expected: MARK,
    },
    Trial {
        name: "int3",
        on_this_cpu: || true,
        // int3; hlt (reached only where the trap is not taken)
        code: &[0xcc, 0xf4],
        expected: MARK,
    },
];

/// Runs every trial and times the loop.
pub(super) fn run(kvm: &Kvm) -> Result<Evidence, ProbeError> {
    let memory = image()?;
    let vm = kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?;
    // Intel CPUs without unrestricted guest keep a TSS in guest memory; above the 64 KiB is room.
    vm.set_tss_address(0xfffb_d000)
        .map_err(refused("KVM_SET_TSS_ADDR"))?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory
            .get_host_address(GuestAddress(0))
            .map_err(ProbeError::Image)? as u64,
        ..Default::default()
    };
    // SAFETY: the region is the whole mapping that `memory` owns, and `memory` is declared before `vm`
    // and its vCPUs, so it is unmapped only after they are closed.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;

    let mut instructions = Vec::with_capacity(TRIALS.len());
    for (id, trial) in (1..).zip(TRIALS) {
        let outcome = if (trial.on_this_cpu)() {
            // A vCPU of its own: after a failed emulation nothing is promised about the old one.
            let mut vcpu = vcpu(&vm, id, &cpuid)?;
            attempt(&mut vcpu, &memory, trial)?
        } else {
            Outcome::NotOnThisCpu
        };
        instructions.push((trial.name, outcome));
    }
    let mut vcpu = vcpu(&vm, 0, &cpuid)?;
    Ok(Evidence {
        instructions,
        slowdown: slowdown(&mut vcpu, &memory)?,
    })
}

fn refused(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Kvm { step, source }
}

/// Page tables, descriptor tables and the breakpoint handler; programs are written in as they run.
fn image() -> Result<GuestMemoryMmap, ProbeError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    /// Present, code, readable, accessed, 64-bit; and present, data, writable, accessed.
    const CODE_DESCRIPTOR: u64 = 0x0020_9b00_0000_0000;
    const DATA_DESCRIPTOR: u64 = 0x0000_9300_0000_0000;
    /// Present, 64-bit interrupt gate, selector in bits 16 to 31, offset in the outer words.
    const GATE: u64 = 0x0000_8e00_0000_0000
        | (CODE_SELECTOR as u64) << 16
        | BREAKPOINT_HANDLER & 0xffff
        | (BREAKPOINT_HANDLER >> 16 & 0xffff) << 48;

    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(ProbeError::Memory)?;
    for (address, word) in [
        (PML4, PDPT | PRESENT_WRITABLE),
        (PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE),
        (PAGE_DIRECTORY, LARGE_PAGE | PRESENT_WRITABLE),
        (GDT + CODE_SELECTOR as u64, CODE_DESCRIPTOR),
        (GDT + DATA_SELECTOR as u64, DATA_DESCRIPTOR),
        (BREAKPOINT_GATE, GATE),
        (BREAKPOINT_GATE + 8, 0),
    ] {
        memory
            .write_slice(&word.to_le_bytes(), GuestAddress(address))
            .map_err(ProbeError::Image)?;
    }
    // mov rax, rbx; hlt
    memory
        .write_slice(&[0x48, 0x89, 0xd8, 0xf4], GuestAddress(BREAKPOINT_HANDLER))
        .map_err(ProbeError::Image)?;
    Ok(memory)
}

/// A vCPU in long mode with flat segments.
fn vcpu(vm: &VmFd, id: u64, cpuid: &CpuId) -> Result<VcpuFd, ProbeError> {
    let vcpu = vm.create_vcpu(id).map_err(refused("KVM_CREATE_VCPU"))?;
    vcpu.set_cpuid2(cpuid).map_err(refused("KVM_SET_CPUID2"))?;
    let reset = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&long_mode(reset))
        .map_err(refused("KVM_SET_SREGS"))?;
    Ok(vcpu)
}

fn long_mode(reset: kvm_sregs) -> kvm_sregs {
    /// PE, MP, ET, NE, WP, PG.
    const CR0: u64 = 0x8001_0033;
    /// PAE, OSFXSR.
    const CR4: u64 = 0x220;
    /// LME, LMA.
    const EFER: u64 = 0x500;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0b1011,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0b0011,
        l: 0,
        db: 1,
        ..code
    };
    let table = |base, entries: u16| kvm_dtable {
        base,
        limit: entries * 8 - 1,
        ..Default::default()
    };
    kvm_sregs {
        cr0: CR0,
        cr3: PML4,
        cr4: CR4,
        efer: EFER,
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdt: table(GDT, 3),
        idt: table(IDT, 4 * 2),
        ..reset
    }
}

/// Why the guest stopped.
enum Stop {
    Halted { rax: u64 },
    EmulationFailed,
    Otherwise,
}

/// Puts `code` into memory and runs it with `rcx` turns and the registers that the trials expect.
fn execute(
    vcpu: &mut VcpuFd,
    memory: &GuestMemoryMmap,
    code: &[u8],
    rcx: u64,
) -> Result<Stop, ProbeError> {
    memory
        .write_slice(code, GuestAddress(CODE))
        .map_err(ProbeError::Image)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rsp: STACK_TOP,
        // Bit 1 is always set.
        rflags: 2,
        rbx: MARK,
        rcx,
        rdi: DATA,
        ..Default::default()
    })
    .map_err(refused("KVM_SET_REGS"))?;
    loop {
        let emulation = match vcpu.run() {
            Ok(VcpuExit::Hlt) => {
                let rax = vcpu.get_regs().map_err(refused("KVM_GET_REGS"))?.rax;
                return Ok(Stop::Halted { rax });
            }
            Ok(VcpuExit::InternalError) => true,
            Ok(_) => false,
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(errno) => return Err(refused("KVM_RUN")(errno)),
        };
        // SAFETY: after KVM_EXIT_INTERNAL_ERROR `internal` is the union's valid member, and it is
        // looked at only then.
        let failed = emulation
            && unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
                == KVM_INTERNAL_ERROR_EMULATION;
        return Ok(if failed {
            Stop::EmulationFailed
        } else {
            Stop::Otherwise
        });
    }
}

fn attempt(
    vcpu: &mut VcpuFd,
    memory: &GuestMemoryMmap,
    trial: &Trial,
) -> Result<Outcome, ProbeError> {
    Ok(match execute(vcpu, memory, trial.code, 0)? {
        Stop::Halted { rax } if rax == trial.expected => Outcome::Ran,
        Stop::EmulationFailed => Outcome::EmulationFailed,
        Stop::Halted { .. } | Stop::Otherwise => Outcome::Misbehaved,
    })
}

/// How many times longer [`TURNS`] turns take in the guest than here; infinite where they do not end.
fn slowdown(vcpu: &mut VcpuFd, memory: &GuestMemoryMmap) -> Result<f64, ProbeError> {
    let mut time_there = |turns| -> Result<Option<Duration>, ProbeError> {
        let start = Instant::now();
        let stop = execute(vcpu, memory, LOOP, turns)?;
        let elapsed = start.elapsed();
        Ok(matches!(stop, Stop::Halted { .. }).then_some(elapsed))
    };
    // The first run takes the guest's page faults.
    time_there(1)?;
    let (mut entry, mut there, mut here) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..REPEATS {
        let (Some(short), Some(long)) = (time_there(1)?, time_there(TURNS)?) else {
            return Ok(f64::INFINITY);
        };
        entry = entry.min(short);
        there = there.min(long);
        here = here.min(time_here(TURNS));
    }
    let here = here.max(Duration::from_nanos(1));
    Ok(there.saturating_sub(entry).as_secs_f64() / here.as_secs_f64())
}

/// The loop of the guest, in this process.
fn time_here(turns: u64) -> Duration {
    let start = Instant::now();
    // SAFETY: two instructions on one register that is declared clobbered; no memory is touched.
    unsafe {
        asm!("2: dec {turns}", "jnz 2b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_maps_its_own_addresses() {
        let memory = image().unwrap();
        let word = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(word(PML4) & !0xfff, PDPT);
        assert_eq!(word(PDPT) & !0xfff, PAGE_DIRECTORY);
        assert_eq!(word(PAGE_DIRECTORY), 0x83, "2 MiB at address 0");
        let gate = word(BREAKPOINT_GATE);
        assert_eq!(
            gate & 0xffff | gate >> 48 << 16,
            BREAKPOINT_HANDLER,
            "the gate's offset is split"
        );
        assert_eq!(gate >> 16 & 0xffff, u64::from(CODE_SELECTOR));
    }

    #[test]
    fn the_loop_here_takes_time() {
        assert!(time_here(1_000_000) > time_here(1));
    }
}
