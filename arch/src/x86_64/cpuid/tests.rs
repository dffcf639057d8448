//! Synthetic AMD and Intel hosts, seen by machines of 1 to 255 CPUs.

use super::*;

const SIZES: [u8; 5] = [1, 2, 3, 4, 255];

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn vendor_leaf(max: u32, name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    entry(0, 0, [max, word(0), word(8), word(4)])
}

/// An Intel server: 16 cores of 2 threads, leaf 0x1F, MWAIT, the host's APIC id 0x2a all over.
fn intel() -> Vec<kvm_cpuid_entry2> {
    let cache = |index, kind: u32, level: u32, sharing: u32| {
        entry(
            4,
            index,
            [
                kind | level << 5 | 1 << 8 | sharing << 14 | 15 << 26,
                0x1c0_003f,
                0x3f,
                0,
            ],
        )
    };
    vec![
        vendor_leaf(0x1f, b"GenuineIntel"),
        entry(
            1,
            0,
            [0x606a6, 0x2a20_0800, MONITOR | 0x1234_0001, 0xbfeb_fbff],
        ),
        cache(0, 1, 1, 1),
        cache(1, 2, 1, 1),
        cache(2, 3, 2, 1),
        cache(3, 3, 3, 31),
        entry(4, 4, [0; 4]),
        entry(5, 0, [0x40, 0x40, 3, 0x2020]),
        entry(0xb, 0, [1, 2, 0x100, 0x2a]),
        entry(0x1f, 0, [1, 2, 0x100, 0x2a]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(LEAF_EXT_MAX, 0, [0x8000_0008, 0, 0, 0]),
        entry(LEAF_EXT_FEATURES, 0, [0, 0, 0x121, 0x2c10_0800]),
        entry(0x8000_0002, 0, [0x6574_6e49, 0x2952_286c, 0, 0]),
        entry(0x8000_0003, 0, [0; 4]),
        entry(0x8000_0004, 0, [0; 4]),
        entry(LEAF_SIZES, 0, [0x3928, 0, 0x1234_5678, 0]),
    ]
}

/// An AMD host of the lab's sort: no leaf 0xB, no brand string, topology extensions.
fn amd() -> Vec<kvm_cpuid_entry2> {
    let cache = |index, kind: u32, level: u32, sharing: u32| {
        entry(
            LEAF_AMD_CACHES,
            index,
            [kind | level << 5 | sharing << 14, 0x1c0_003f, 0x3f, 0],
        )
    };
    vec![
        vendor_leaf(7, b"AuthenticAMD"),
        entry(1, 0, [0x80_0f12, 0x0710_0800, 0x1, 0x178b_fbff]),
        entry(LEAF_EXT_MAX, 0, [0x8000_0026, 0, 0, 0]),
        entry(LEAF_EXT_FEATURES, 0, [0, 0, 1 << 22 | MWAITX | 1, 0]),
        entry(LEAF_SIZES, 0, [0x3028, 0, 0x2_703f, 0]),
        cache(0, 1, 1, 1),
        cache(1, 3, 2, 1),
        cache(2, 3, 3, 15),
        entry(LEAF_AMD_TOPOLOGY, 0, [0x2a, 0x101, 0x303, 0]),
        entry(LEAF_AMD_TOPOLOGY_V2, 0, [1, 2, 0x100, 0x2a]),
    ]
}

/// What the CPUID instruction returns; fails when two entries would answer.
fn cpuid(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let found: Vec<_> = entries
        .iter()
        .filter(|e| e.function == function && e.index == index)
        .collect();
    assert!(
        found.len() <= 1,
        "leaf {function:#x}.{index} is there {} times",
        found.len()
    );
    found
        .first()
        .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

#[test]
fn leaf_1_has_this_machines_ids_and_features() {
    for host in [intel(), amd()] {
        let original = cpuid(&host, 1, 0);
        for cpus in SIZES {
            let vcpu = cpus - 1;
            let [eax, ebx, ecx, edx] = cpuid(&for_vcpu(&host, vcpu, cpus), 1, 0);
            assert_eq!(eax, original[0]);
            assert_eq!(ebx >> 24, u32::from(vcpu));
            assert_eq!(ebx >> 16 & 0xff, u32::from(cpus));
            assert_eq!(ebx & 0xffff, original[1] & 0xffff);
            assert_eq!(
                ecx & (X2APIC | TSC_DEADLINE | HYPERVISOR),
                X2APIC | TSC_DEADLINE | HYPERVISOR
            );
            assert_eq!(ecx & MONITOR, 0);
            assert_eq!(edx & HTT != 0, cpus > 1);
            assert_eq!(edx & !HTT, original[3] & !HTT);
        }
    }
}

#[test]
fn leaf_b_is_complete_on_every_host() {
    for host in [intel(), amd()] {
        for cpus in SIZES {
            let vcpu = cpus / 2;
            let entries = for_vcpu(&host, vcpu, cpus);
            let id = u32::from(vcpu);
            assert!(cpuid(&entries, 0, 0)[0] >= 0xb);
            assert_eq!(cpuid(&entries, 0xb, 0), [0, 1, 0x100, id]);
            let [shift, count, level, edx] = cpuid(&entries, 0xb, 1);
            assert_eq!((count, level, edx), (cpus.into(), 0x201, id));
            // All cores are in package 0, and no shorter shift would have them there.
            assert_eq!(u32::from(cpus - 1) >> shift, 0);
            assert!(shift == 0 || u32::from(cpus - 1) >> (shift - 1) != 0);
            assert_eq!(cpuid(&entries, 0xb, 2), [0, 0, 2, id]);
        }
    }
}

#[test]
fn leaf_1f_says_the_same_where_the_host_has_it() {
    let entries = for_vcpu(&intel(), 3, 4);
    for index in 0..3 {
        assert_eq!(cpuid(&entries, 0x1f, index), cpuid(&entries, 0xb, index));
    }
    let entries = for_vcpu(&amd(), 3, 4);
    assert!(entries.iter().all(|e| e.function != 0x1f));
}

#[test]
fn subleaves_are_marked_as_such() {
    let entries = for_vcpu(&intel(), 0, 2);
    let topology = entries.iter().filter(|e| [0xb, 0x1f].contains(&e.function));
    assert!(topology.clone().count() == 6);
    assert!(
        topology
            .clone()
            .all(|e| e.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    );
}

#[test]
fn intel_caches_are_a_cores_own_up_to_level_2() {
    for (cpus, shared, cores) in [(1, 0, 0), (2, 1, 1), (3, 3, 3), (4, 3, 3), (255, 255, 63)] {
        let entries = for_vcpu(&intel(), 0, cpus);
        for (index, sharing) in [(0, 0), (1, 0), (2, 0), (3, shared)] {
            let [eax, ebx, ecx, _] = cpuid(&entries, 4, index);
            assert_eq!(eax >> 14 & 0xfff, sharing, "subleaf {index} of {cpus}");
            assert_eq!(eax >> 26, cores);
            assert_eq!((eax & 0x3fff, ebx, ecx), {
                let host = cpuid(&intel(), 4, index);
                (host[0] & 0x3fff, host[1], host[2])
            });
        }
        assert_eq!(cpuid(&entries, 4, 4), [0; 4]);
    }
}

#[test]
fn amd_leaves_agree_with_each_other() {
    for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
        let vcpu = cpus - 1;
        let entries = for_vcpu(&amd(), vcpu, cpus);
        assert_eq!(
            cpuid(&entries, LEAF_SIZES, 0)[2],
            0x2_0000 | bits << 12 | u32::from(vcpu)
        );
        let id = u32::from(vcpu);
        assert_eq!(cpuid(&entries, LEAF_AMD_TOPOLOGY, 0), [id, id, 0, 0]);
        let ecx = cpuid(&entries, LEAF_EXT_FEATURES, 0)[2];
        assert_eq!(ecx & CMP_LEGACY != 0, cpus > 1);
        assert_eq!((ecx & MWAITX, ecx >> 22 & 1), (0, 1));
        assert_eq!(cpuid(&entries, LEAF_AMD_CACHES, 1)[0] >> 14, 0);
        assert_eq!(
            cpuid(&entries, LEAF_AMD_CACHES, 2)[0] >> 14,
            (1 << bits) - 1
        );
    }
    let entries = for_vcpu(&amd(), 0, 2);
    assert!(entries.iter().all(|e| e.function != LEAF_AMD_TOPOLOGY_V2));
}

#[test]
fn amd_rules_do_not_touch_intel() {
    let entries = for_vcpu(&intel(), 1, 2);
    assert_eq!(cpuid(&entries, LEAF_SIZES, 0)[2], 0x1234_5678);
    assert_eq!(cpuid(&entries, LEAF_EXT_FEATURES, 0)[2], 0x121);
}

#[test]
fn mwait_is_off() {
    assert_eq!(cpuid(&for_vcpu(&intel(), 0, 1), 5, 0), [0; 4]);
}

#[test]
fn brand_is_the_hosts_or_ours() {
    let entries = for_vcpu(&intel(), 0, 1);
    assert_eq!(cpuid(&entries, 0x8000_0002, 0)[0], 0x6574_6e49);
    assert_eq!(cpuid(&entries, LEAF_EXT_MAX, 0)[0], 0x8000_0008);

    for host in [amd(), vec![vendor_leaf(1, b"GenuineIntel")]] {
        let entries = for_vcpu(&host, 0, 1);
        let text: Vec<u8> = (LEAF_BRAND..=LEAF_BRAND_END)
            .flat_map(|leaf| cpuid(&entries, leaf, 0))
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(text.len(), 48);
        assert!(text.starts_with(BRAND));
        assert!(text[BRAND.len()..].iter().all(|&byte| byte == 0));
        assert!(cpuid(&entries, LEAF_EXT_MAX, 0)[0] >= LEAF_BRAND_END);
    }
}

#[test]
fn a_brand_that_was_set_reaches_the_guest() {
    let mut host = amd();
    host.extend((LEAF_BRAND..=LEAF_BRAND_END).map(|leaf| entry(leaf, 0, [0; 4])));
    let mut brand = [0; BRAND_LEN];
    brand[..13].copy_from_slice(b"Some real CPU");
    set_brand(&mut host, &brand);
    let entries = for_vcpu(&host, 0, 1);
    assert_eq!(
        cpuid(&entries, 0x8000_0002, 0)
            .map(u32::to_le_bytes)
            .concat()[..13],
        brand[..13]
    );
}

#[test]
fn kvm_leaves_are_kept() {
    let entries = for_vcpu(&intel(), 0, 1);
    assert_eq!(
        cpuid(&entries, 0x4000_0000, 0),
        cpuid(&intel(), 0x4000_0000, 0)
    );
}

#[test]
fn an_empty_host_still_makes_a_cpu() {
    let entries = for_vcpu(&[], 0, 0);
    assert_eq!(cpuid(&entries, 0, 0)[0], 0xb);
}
