//! CPUID of a vCPU: what the host's KVM supports, with this machine's topology in place of the host's.
//!
//! `KVM_GET_SUPPORTED_CPUID` answers for the CPU that the ioctl runs on and leaves to the VMM what
//! differs per vCPU (Documentation/virt/kvm/api.rst, 4.46). The machine is one socket of as many cores
//! as it has vCPUs, one thread each, APIC id = core id = vCPU index. A leaf about topology says that
//! or is left out. Everything else is the host's: features, frequencies, the KVM leaves at 0x4000_0000.
//!
//! Leaves: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.

#[cfg(test)]
mod tests;
mod topology;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use self::topology::Topology;

const LEAF_VENDOR: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_MWAIT: u32 = 5;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_EXT_MAX: u32 = 0x8000_0000;
const LEAF_EXT_FEATURES: u32 = 0x8000_0001;
const LEAF_BRAND: u32 = 0x8000_0002;
const LEAF_BRAND_END: u32 = 0x8000_0004;
const LEAF_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Leaf 1 ECX.
const MONITOR: u32 = 1 << 3;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package may have more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX, AMD: the logical processors are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;
const MWAITX: u32 = 1 << 29;

/// What a vCPU is called that has no brand string; padded with NULs to three leaves.
const BRAND: &[u8] = b"mvm virtual CPU";
/// Length of a brand string: three leaves of four registers.
const BRAND_LEN: usize = 48;

/// Whose conventions the topology leaves follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    /// AMD and Hygon.
    Amd,
    /// Intel, and all others, who follow it.
    Intel,
}

/// The entries to give `KVM_SET_CPUID2` on vCPU `vcpu` (its APIC id) of `cpus`, from those that
/// `KVM_GET_SUPPORTED_CPUID` returned.
///
/// Needs an in-kernel local APIC: it announces x2APIC and the TSC deadline timer, of which KVM reports
/// the latter not here but as `KVM_CAP_TSC_DEADLINE_TIMER`, which every KVM since Linux 3.1 has.
#[must_use]
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], vcpu: u8, cpus: u8) -> Vec<kvm_cpuid_entry2> {
    let topology = Topology::new(vcpu, cpus);
    let vendor = vendor(supported);
    let rebuilt = [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_AMD_TOPOLOGY_V2];
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| !rebuilt.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, vendor, topology);
    }
    // Linux reads APIC ids above 254 and the core shift from here; some hosts omit subleaf 1.
    entries.extend(topology.leaf(LEAF_TOPOLOGY));
    raise_max(&mut entries, LEAF_VENDOR, LEAF_TOPOLOGY);
    if supported
        .iter()
        .any(|entry| entry.function == LEAF_TOPOLOGY_V2)
    {
        entries.extend(topology.leaf(LEAF_TOPOLOGY_V2));
    }
    ensure_brand(&mut entries);
    entries
}

/// Changes what one entry says of this machine.
fn adjust(entry: &mut kvm_cpuid_entry2, vendor: Vendor, topology: Topology) {
    let amd = vendor == Vendor::Amd;
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = topology.leaf_1_ebx(entry.ebx);
            entry.ecx = (entry.ecx & !MONITOR) | X2APIC | TSC_DEADLINE | HYPERVISOR;
            entry.edx = with_bits(entry.edx, HTT, topology.cores() > 1);
        }
        LEAF_CACHES => entry.eax = topology.intel_cache_eax(entry.eax),
        // MWAIT is not offered: nothing about it either.
        LEAF_MWAIT => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_EXT_FEATURES if amd => {
            entry.ecx = with_bits(entry.ecx & !MWAITX, CMP_LEGACY, topology.cores() > 1);
        }
        LEAF_SIZES if amd => entry.ecx = topology.amd_sizes_ecx(entry.ecx),
        LEAF_AMD_CACHES if amd => entry.eax = topology.cache_eax(entry.eax),
        LEAF_AMD_TOPOLOGY if amd => {
            // Extended APIC id; core id with one thread per core; node 0 of one.
            (entry.eax, entry.ebx) = (topology.apic_id(), topology.apic_id());
            (entry.ecx, entry.edx) = (0, 0);
        }
        _ => {}
    }
}

/// Sets or clears `bits`.
fn with_bits(value: u32, bits: u32, set: bool) -> u32 {
    if set { value | bits } else { value & !bits }
}

/// Tells the vendor by the string of leaf 0, in EBX, EDX, ECX.
fn vendor(entries: &[kvm_cpuid_entry2]) -> Vendor {
    let is = |leaf: &kvm_cpuid_entry2, name: &[u8; 12]| {
        [leaf.ebx, leaf.edx, leaf.ecx]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .eq(name.iter().copied())
    };
    match entries.iter().find(|entry| entry.function == LEAF_VENDOR) {
        Some(leaf) if is(leaf, b"AuthenticAMD") || is(leaf, b"HygonGenuine") => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// Makes the leaf that says how far its range goes say at least `max`.
fn raise_max(entries: &mut Vec<kvm_cpuid_entry2>, range: u32, max: u32) {
    match entries.iter_mut().find(|entry| entry.function == range) {
        Some(entry) => entry.eax = entry.eax.max(max),
        None => entries.push(kvm_cpuid_entry2 {
            function: range,
            eax: max,
            ..Default::default()
        }),
    }
}

/// Gives a CPU a brand string, in place of the one it has.
///
/// KVM leaves the leaves 0x8000_0002 to 4 zero. A VMM that wants the host's name in the guest reads
/// them with the CPUID instruction and puts them in here, before [`for_vcpu`].
pub fn set_brand(entries: &mut Vec<kvm_cpuid_entry2>, brand: &[u8; BRAND_LEN]) {
    let leaves = LEAF_BRAND..=LEAF_BRAND_END;
    entries.retain(|entry| !leaves.contains(&entry.function));
    for (function, text) in leaves.zip(brand.chunks_exact(16)) {
        let register = |at: usize| {
            text[at..at + 4]
                .iter()
                .rev()
                .fold(0, |word, &byte| word << 8 | u32::from(byte))
        };
        entries.push(kvm_cpuid_entry2 {
            function,
            eax: register(0),
            ebx: register(4),
            ecx: register(8),
            edx: register(12),
            ..Default::default()
        });
    }
    raise_max(entries, LEAF_EXT_MAX, LEAF_BRAND_END);
}

/// Names a CPU that has no name.
fn ensure_brand(entries: &mut Vec<kvm_cpuid_entry2>) {
    let named = entries
        .iter()
        .filter(|entry| (LEAF_BRAND..=LEAF_BRAND_END).contains(&entry.function))
        .any(|entry| entry.eax | entry.ebx | entry.ecx | entry.edx != 0);
    if !named {
        let mut brand = [0; BRAND_LEN];
        brand[..BRAND.len()].copy_from_slice(BRAND);
        set_brand(entries, &brand);
    }
}

/// An entry of a leaf that has subleaves.
fn subleaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..Default::default()
    }
}
