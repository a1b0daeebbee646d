"""What a Linux guest's CPUs say of themselves, and the MSRs that firmware would have set.

The start is what KVM can give (KVM_GET_SUPPORTED_CPUID), whose topology is the host's: that is put right, the rest is
kept. One package, a core for each vCPU, one thread a core, APIC id = index. Leaves: AMD64 Architecture Programmer's
Manual, volume 3, appendix E; Intel SDM, volume 2, CPUID; Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hostd.kvm import Vcpu
from hostd.kvm.call import ffi

SIGNIFICANT_INDEX = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the leaf has sub-leaves, told apart by ECX"""
KVM_LEAF, KVM_FEATURES, KVM_FREQUENCY = 0x4000_0000, 0x4000_0001, 0x4000_0010
APIC_BUS_KHZ = 1_000_000
"""KVM's APIC timer counts nanoseconds"""

# Leaf 1, ECX and EDX.
MONITOR, VMX, TSC_DEADLINE, HYPERVISOR, HTT = 1 << 3, 1 << 5, 1 << 24, 1 << 31, 1 << 28
# Leaf 0x80000001, ECX.
CMP_LEGACY, SVM, TOPOLOGY_EXTENSIONS = 1 << 1, 1 << 2, 1 << 22

MISC_ENABLE, FAST_STRING = 0x1A0, 1
MTRR_DEFAULT_TYPE, MTRR_ENABLED, WRITE_BACK = 0x2FF, 1 << 11, 6


@dataclass(slots=True)
class Leaf:
    """One CPUID entry: what `function` (EAX) and `index` (ECX) give."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def physical_bits(supported: Any) -> int:
    """Return how many physical address bits guests have; `supported` is `System.supported_cpuid()`."""
    return next((leaf.eax & 0xFF for leaf in leaves(supported) if leaf.function == 0x8000_0008), 36)


def guest_cpuid(supported: Any, index: int, count: int, tsc_khz: int = 0, *, deadline: bool = True) -> Any:
    """Return a `struct kvm_cpuid2 *` for vCPU `index` of `count`, for `Vcpu.set_cpuid`.

    `supported` is `System.supported_cpuid()`; `tsc_khz` the guest's TSC frequency or 0; `deadline` whether KVM has the
    APIC's TSC-deadline timer (capability TSC_DEADLINE_TIMER).
    """
    found = adapted(leaves(supported), index, count, tsc_khz, deadline=deadline)
    cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": len(found), "entries": len(found)})
    for entry, leaf in zip(cpuid.entries[0 : len(found)], found, strict=True):
        entry.function, entry.index, entry.flags = leaf.function, leaf.index, leaf.flags
        entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
    return cpuid


def leaves(cpuid: Any) -> list[Leaf]:
    """Return the entries of a `struct kvm_cpuid2 *`."""
    return [
        Leaf(entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
        for entry in cpuid.entries[0 : cpuid.nent]
    ]


def adapted(supported: list[Leaf], index: int, count: int, tsc_khz: int, *, deadline: bool) -> list[Leaf]:
    """Return the leaves for vCPU `index` of `count`, made from those that KVM supports."""
    core_bits = (count - 1).bit_length()
    top = max((leaf.function for leaf in supported if leaf.function < KVM_LEAF), default=0)
    change: dict[int, Callable[[Leaf], None]] = {
        0x0: lambda leaf: _limit(leaf, max(top, 0xB)),
        0x1: lambda leaf: _features(leaf, index, count, deadline),
        0x4: lambda leaf: _intel_cache(leaf, count),
        0x8000_0001: lambda leaf: _amd_features(leaf, count),
        0x8000_0008: lambda leaf: _amd_cores(leaf, count, core_bits),
        0x8000_001D: lambda leaf: _amd_cache(leaf, count),
        0x8000_001E: lambda leaf: _amd_topology(leaf, index),
        KVM_LEAF: lambda leaf: _limit(leaf, KVM_FREQUENCY if tsc_khz else leaf.eax),
    }
    made = []
    for leaf in supported:
        if leaf.function in REPLACED:
            continue
        copy = Leaf(leaf.function, leaf.index, leaf.flags, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
        alter = change.get(leaf.function)
        if alter is not None:
            alter(copy)
        made.append(copy)
    for function in (0xB, 0x1F) if top >= 0x1F else (0xB,):
        made += _topology(function, index, count, core_bits)
    if tsc_khz and any(leaf.function == KVM_LEAF for leaf in supported):
        made.append(Leaf(KVM_FREQUENCY, eax=tsc_khz, ebx=APIC_BUS_KHZ))
    return made


REPLACED = frozenset((0xB, 0x1F, KVM_FREQUENCY, 0x8000_000A))
"""made anew, or (SVM's features) of what a guest has not"""


def _limit(leaf: Leaf, top: int) -> None:
    leaf.eax = top


def _features(leaf: Leaf, index: int, count: int, deadline: bool) -> None:
    # CLFLUSH's line size (bits 8 to 15) is the host's.
    threads = 1 << (count - 1).bit_length()
    leaf.ebx = leaf.ebx & 0xFF00 | index << 24 | threads << 16
    # No MWAIT, which would hold the host's CPU, and no virtual machines inside: less to attack.
    leaf.ecx = leaf.ecx & ~(MONITOR | VMX | TSC_DEADLINE) | HYPERVISOR | (TSC_DEADLINE if deadline else 0)
    leaf.edx = leaf.edx & ~HTT | (HTT if count > 1 else 0)


def _intel_cache(leaf: Leaf, count: int) -> None:
    """Caches up to level 2 are a core's own, level 3 is everybody's."""
    if leaf.eax & 0x1F:
        level = leaf.eax >> 5 & 7
        sharers = count - 1 if level >= 3 else 0
        leaf.eax = leaf.eax & 0x3FFF | sharers << 14 | ((1 << (count - 1).bit_length()) - 1) << 26


def _amd_cache(leaf: Leaf, count: int) -> None:
    if leaf.eax & 0x1F:
        level = leaf.eax >> 5 & 7
        leaf.eax = leaf.eax & 0x3FFF | (count - 1 if level >= 3 else 0) << 14


def _amd_features(leaf: Leaf, count: int) -> None:
    leaf.ecx = leaf.ecx & ~(SVM | CMP_LEGACY) | (CMP_LEGACY if count > 1 else 0)


def _amd_cores(leaf: Leaf, count: int, core_bits: int) -> None:
    leaf.ecx = leaf.ecx & ~0xF0FF | core_bits << 12 | (count - 1)


def _amd_topology(leaf: Leaf, index: int) -> None:
    leaf.eax, leaf.ebx, leaf.ecx, leaf.edx = index, index, 0, 0


def _topology(function: int, index: int, count: int, core_bits: int) -> list[Leaf]:
    """Levels: a thread a core, `count` cores, nothing above."""
    thread, core = 1, 2
    return [
        Leaf(function, 0, SIGNIFICANT_INDEX, 0, 1, thread << 8, index),
        Leaf(function, 1, SIGNIFICANT_INDEX, core_bits, count, core << 8 | 1, index),
        Leaf(function, 2, SIGNIFICANT_INDEX, 0, 0, 2, index),
    ]


def prepare_vcpu(vcpu: Vcpu, supported: Any, index: int, count: int, *, deadline: bool = True) -> None:
    """Give vCPU `index` of `count` its CPUID, its MSRs and its XCR0; before its registers. Raises KvmError."""
    vcpu.set_cpuid(guest_cpuid(supported, index, count, vcpu.tsc_khz, deadline=deadline))
    set_msrs(vcpu)
    states = extended_states(leaves(supported))
    if states:
        # Linux would turn them all on anyway. Where the CPU under KVM doesn't report XSETBV to it (QEMU's emulation of
        # AMD-V), KVM would go on telling of the smaller save area that belongs to the value after reset.
        vcpu.xcrs = {0: states}


def extended_states(supported: list[Leaf]) -> int:
    """Return all bits that XCR0 may have (leaf 0xD), 0 without XSAVE."""
    return next((leaf.eax | leaf.edx << 32 for leaf in supported if leaf.function == 0xD and leaf.index == 0), 0)


def set_msrs(vcpu: Vcpu) -> None:
    """Set the MSRs that firmware would: memory is write-back by default (MTRR), fast string operations are on.

    Raises KvmError.
    """
    enabled = vcpu.get_msrs(MISC_ENABLE)[MISC_ENABLE]
    vcpu.set_msrs({MISC_ENABLE: enabled | FAST_STRING, MTRR_DEFAULT_TYPE: MTRR_ENABLED | WRITE_BACK})
