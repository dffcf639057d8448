//! One socket, cores of one thread each, in the words of each leaf that tells of it.

use kvm_bindings::kvm_cpuid_entry2;

use super::subleaf;

/// Level types of leaves 0xB and 0x1F, in ECX bits 15:8 (SDM vol. 2A, CPUID leaf 1FH).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The lowest cache level that all cores share; those below belong to one core.
const SHARED_CACHE_LEVEL: u32 = 3;

/// A vCPU's place among the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Topology {
    apic_id: u32,
    cores: u32,
}

impl Topology {
    pub fn new(vcpu: u8, cpus: u8) -> Self {
        Self {
            apic_id: vcpu.into(),
            cores: u32::from(cpus).max(1),
        }
    }

    /// The APIC id, which is also the core's number.
    pub fn apic_id(self) -> u32 {
        self.apic_id
    }

    pub fn cores(self) -> u32 {
        self.cores
    }

    /// How many bits of an APIC id number the cores of a package.
    fn core_bits(self) -> u32 {
        self.cores.next_power_of_two().trailing_zeros()
    }

    /// Leaf 1 EBX: initial APIC id in bits 31:24, logical processors in 23:16; the rest is kept.
    pub fn leaf_1_ebx(self, ebx: u32) -> u32 {
        ebx & 0xffff | self.cores << 16 | self.apic_id << 24
    }

    /// Leaf 4 EAX: as [`Self::cache_eax`], and the most core ids of a package, minus 1, in bits
    /// 31:26. Six bits: 64 cores stand for more, and leaf 0xB knows better.
    pub fn intel_cache_eax(self, eax: u32) -> u32 {
        if cache_type(eax) == 0 {
            return eax;
        }
        let cores = (self.cores.next_power_of_two() - 1).min(0x3f);
        self.cache_eax(eax) & !(0x3f << 26) | cores << 26
    }

    /// Leaf 4 and AMD's 0x8000_001D, EAX: the most logical processors that share this cache, minus
    /// 1, in bits 25:14.
    pub fn cache_eax(self, eax: u32) -> u32 {
        if cache_type(eax) == 0 {
            return eax;
        }
        let level = eax >> 5 & 7;
        let sharing = match level {
            SHARED_CACHE_LEVEL.. => self.cores.next_power_of_two(),
            _ => 1,
        };
        eax & !(0xfff << 14) | (sharing - 1) << 14
    }

    /// AMD's leaf 0x8000_0008 ECX: cores minus 1 in bits 7:0, bits of an APIC id that number them in
    /// 15:12; the rest is kept.
    pub fn amd_sizes_ecx(self, ecx: u32) -> u32 {
        ecx & !0xf0ff | (self.cores - 1) | self.core_bits() << 12
    }

    /// Leaf 0xB or 0x1F: threads, cores, end. EDX is the x2APIC id in every subleaf.
    pub fn leaf(self, function: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
            eax: shift,
            ebx: count,
            ecx: index | kind << 8,
            edx: self.apic_id,
            ..subleaf(function, index)
        };
        [
            level(0, LEVEL_SMT, 0, 1),
            level(1, LEVEL_CORE, self.core_bits(), self.cores),
            level(2, 0, 0, 0),
        ]
    }
}

/// The kind of cache, in EAX bits 4:0; 0 ends the list.
fn cache_type(eax: u32) -> u32 {
    eax & 0x1f
}
