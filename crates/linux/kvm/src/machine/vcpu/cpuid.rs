//! What a guest sees of its processors.
//!
//! The base is what KVM supports on this host; changed is what depends on the machine: topology,
//! APIC identifiers, and features this monitor does or does not provide.
//! *Intel SDM* volume 2A, CPUID; *AMD APM* volume 3, appendix E.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES_INTEL: u32 = 4;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_2: u32 = 0x1f;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_SIZES: u32 = 0x8000_0008;
const LEAF_CACHES_AMD: u32 = 0x8000_001d;
const LEAF_TOPOLOGY_AMD: u32 = 0x8000_001e;
/// Leaves that KVM and other hypervisors use to tell of themselves.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
/// AMD: core performance counters, and those of the northbridge and the L2 cache.
const ECX_AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
const ECX_AMD_TOPOLOGY: u32 = 1 << 22;

/// Level types of leaf 0xb.
const LEVEL_THREADS: u32 = 1;
const LEVEL_CORES: u32 = 2;

/// What the tables depend on.
#[derive(Debug, Clone, Copy)]
pub struct Processors {
    /// How many there are, 1 to 64. One package of so many cores, a thread each.
    pub count: u8,
    /// KVM emulates the local APIC's TSC deadline timer.
    pub tsc_deadline: bool,
}

/// Width of a guest-physical address, in bits.
pub fn address_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    const ASSUMED: u8 = 36;
    supported
        .iter()
        .find(|e| e.function == LEAF_SIZES)
        .map_or(ASSUMED, |e| e.eax as u8)
}

/// The table for the processor with APIC identifier `id`.
pub fn table(
    supported: &[kvm_cpuid_entry2],
    processors: Processors,
    id: u8,
) -> Vec<kvm_cpuid_entry2> {
    let max_basic = supported
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.eax);
    let mut table: Vec<_> = supported
        .iter()
        .copied()
        .filter(|e| !matches!(e.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_2))
        .map(|mut entry| {
            patch(&mut entry, processors, id);
            entry
        })
        .collect();
    for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_2] {
        if max_basic >= leaf {
            table.extend(topology(leaf, processors, id));
        }
    }
    table
}

fn patch(entry: &mut kvm_cpuid_entry2, processors: Processors, id: u8) {
    let count = u32::from(processors.count);
    let id_bits = id_bits(processors);
    match entry.function {
        LEAF_FEATURES => {
            // APIC identifier, and how many identifiers the package has.
            entry.ebx = entry.ebx & 0x0000_ffff | u32::from(id) << 24 | (1 << id_bits) << 16;
            entry.ecx |= ECX_HYPERVISOR;
            set(&mut entry.ecx, ECX_TSC_DEADLINE, processors.tsc_deadline);
            set(&mut entry.edx, EDX_HYPER_THREADING, count > 1);
        }
        LEAF_CACHES_INTEL if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << id_bits) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << id_bits) - 1) << 26;
        }
        // No performance counters: they tell a guest about its neighbours.
        LEAF_PERFORMANCE => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_EXTENDED_FEATURES => entry.ecx &= !ECX_AMD_COUNTERS,
        LEAF_SIZES => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (count - 1),
        LEAF_CACHES_AMD if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        LEAF_TOPOLOGY_AMD => {
            entry.eax = id.into();
            entry.ebx = id.into();
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

/// Levels of the extended topology leaves: threads of a core (one), cores of the package.
fn topology(leaf: u32, processors: Processors, id: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: id.into(),
        ..Default::default()
    };
    [
        level(0, LEVEL_THREADS, 0, 1),
        level(1, LEVEL_CORES, id_bits(processors), processors.count.into()),
        level(2, 0, 0, 0),
    ]
}

/// Bits that tell the package's processors apart.
fn id_bits(processors: Processors) -> u32 {
    u32::from(processors.count.max(1))
        .next_power_of_two()
        .trailing_zeros()
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

/// Whether the guest will find a hypervisor that speaks KVM's own protocol.
pub fn has_kvm_leaves(table: &[kvm_cpuid_entry2]) -> bool {
    table
        .iter()
        .any(|e| HYPERVISOR_LEAVES.contains(&e.function))
}

/// Whether AMD's topology leaves are announced.
pub fn has_amd_topology(table: &[kvm_cpuid_entry2]) -> bool {
    table
        .iter()
        .any(|e| e.function == LEAF_EXTENDED_FEATURES && e.ecx & ECX_AMD_TOPOLOGY != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
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

    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, 0, [0xd, 0, 0, 0]),
            entry(1, 0, [0x800f12, 0xff40_0800, 0, u32::MAX]),
            entry(4, 0, [0xfc00_4121, 0, 0, 0]),
            entry(4, 3, [0xfc1f_c163, 0, 0, 0]),
            entry(4, 4, [0, 0, 0, 0]),
            entry(0xa, 0, [0x0730_0404, 0, 0, 0x603]),
            entry(0xb, 0, [7, 7, 7, 7]),
            entry(0x8000_0001, 0, [0, 0, u32::MAX, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0xf0ff, 0]),
            entry(0x8000_001d, 3, [0x3ff_c163, 0, 0, 0]),
            entry(0x8000_001e, 0, [9, 9, 9, 9]),
        ]
    }

    fn find(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = table
            .iter()
            .filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    fn with(count: u8, id: u8) -> Vec<kvm_cpuid_entry2> {
        let processors = Processors {
            count,
            tsc_deadline: true,
        };
        table(&host(), processors, id)
    }

    #[test]
    fn apic_id_is_the_same_in_every_leaf() {
        let table = with(8, 5);

        assert_eq!(find(&table, 1, 0).ebx >> 24, 5);
        assert_eq!(find(&table, 0xb, 0).edx, 5);
        assert_eq!(find(&table, 0xb, 1).edx, 5);
        assert_eq!(find(&table, 0x8000_001e, 0).eax, 5);
    }

    #[test]
    fn topology_of_6_processors_takes_3_bits() {
        let table = with(6, 0);

        let cores = find(&table, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 2 << 8 | 1));
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 3 << 12 | 5);
        assert_eq!(find(&table, 1, 0).ebx >> 16 & 0xff, 8);
    }

    #[test]
    fn single_processor_has_no_siblings() {
        let table = with(1, 0);

        assert_eq!(find(&table, 1, 0).edx & EDX_HYPER_THREADING, 0);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0);
        assert_eq!(find(&table, 0xb, 1).eax, 0);
    }

    #[test]
    fn last_level_cache_is_shared_by_all_and_the_first_by_none() {
        let table = with(4, 0);

        assert_eq!(find(&table, 4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&table, 4, 3).eax >> 14 & 0xfff, 3);
        assert_eq!(find(&table, 4, 3).eax >> 26, 3);
        assert_eq!(find(&table, 4, 4).eax, 0);
        assert_eq!(find(&table, 0x8000_001d, 3).eax >> 14 & 0xfff, 3);
    }

    #[test]
    fn hypervisor_and_deadline_timer_are_announced() {
        let ecx = find(&with(1, 0), 1, 0).ecx;

        assert_eq!(
            ecx & (ECX_HYPERVISOR | ECX_TSC_DEADLINE),
            ECX_HYPERVISOR | ECX_TSC_DEADLINE
        );
    }

    #[test]
    fn performance_counters_are_hidden() {
        let table = with(1, 0);

        assert_eq!(find(&table, 0xa, 0).eax, 0);
        assert_eq!(find(&table, 0x8000_0001, 0).ecx & ECX_AMD_COUNTERS, 0);
    }

    #[test]
    fn leaf_beyond_the_hosts_highest_is_not_invented() {
        assert!(with(4, 0).iter().all(|e| e.function != LEAF_TOPOLOGY_2));
    }

    #[test]
    fn address_width_is_the_hosts() {
        assert_eq!(address_bits(&host()), 48);
    }
}
