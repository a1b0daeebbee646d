"""CPUID of a Linux guest: what KVM supports, with the guest's topology in place of the host's."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.boot.linux.cpuid import Leaf, adapted, extended_states, guest_cpuid, leaves, physical_bits

AMD = [
    Leaf(0x0, eax=0xD),
    Leaf(0x1, eax=0x800F12, ebx=0x0F10_0800, ecx=0x0020_0028, edx=0x178B_FBFF),
    Leaf(0xB, 0, 1, 1, 2, 0x100, 15),
    Leaf(0xD, 0, 1, 0x207, 576, 2696, 0),
    Leaf(0x4000_0000, eax=0x4000_0001, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
    Leaf(0x4000_0001, eax=0x0100_7EFB),
    Leaf(0x8000_0001, ecx=0x0040_0006),
    Leaf(0x8000_0008, eax=0x3028, ecx=0x7007),
    Leaf(0x8000_000A, eax=1),
    Leaf(0x8000_001D, 0, 1, 0x0000_4121),
    Leaf(0x8000_001D, 3, 1, 0x0001_C163),
    Leaf(0x8000_001D, 4, 1, 0),
    Leaf(0x8000_001E, eax=15, ebx=0x107, ecx=0x300),
]
INTEL = [
    Leaf(0x0, eax=0x1F),
    Leaf(0x1, ebx=0x0710_0800, ecx=0x8020_0028, edx=1 << 28),
    Leaf(0x4, 0, 1, 0x1C00_4121),
    Leaf(0x4, 3, 1, 0x1C03_C163),
    Leaf(0x4, 4, 1, 0),
    Leaf(0xB, 0, 1, 1, 2, 0x100, 7),
    Leaf(0x1F, 0, 1, 1, 2, 0x100, 7),
    Leaf(0x4000_0000, eax=0x4000_0001),
    Leaf(0x8000_0008, eax=0x302E),
]
HOSTS = {"AMD": AMD, "Intel": INTEL}


def of(found, function, index=0):
    """Return the one entry that answers for a function and index."""
    matching = [leaf for leaf in found if leaf.function == function and leaf.index == index]
    assert len(matching) == 1, (hex(function), matching)
    return matching[0]


@pytest.mark.parametrize("host", HOSTS)
@given(count=st.integers(1, 8), data=st.data())
def test_every_vcpu_is_a_core_of_one_package(host, count, data):
    index = data.draw(st.integers(0, count - 1))
    before = copy.deepcopy(HOSTS[host])
    found = adapted(HOSTS[host], index, count, 2_500_000, deadline=True)
    assert before == HOSTS[host]
    assert len({(leaf.function, leaf.index) for leaf in found}) == len(found)
    bits = (count - 1).bit_length()
    one = of(found, 1)
    assert one.ebx >> 24 == index
    assert one.ebx & 0xFF00 == 0x0800
    assert one.ebx >> 16 & 0xFF == 1 << bits
    assert one.edx >> 28 & 1 == (count > 1)
    for function in (0xB, 0x1F) if host == "Intel" else (0xB,):
        thread, core, end = (of(found, function, number) for number in range(3))
        assert (thread.eax, thread.ebx, thread.ecx) == (0, 1, 0x100)
        assert (core.eax, core.ebx, core.ecx) == (bits, count, 0x201)
        assert (end.eax, end.ebx) == (0, 0)
        assert thread.edx == core.edx == end.edx == index
    assert of(found, 0).eax >= 0xB


@pytest.mark.parametrize("host", HOSTS)
def test_what_a_guest_must_not_have_is_gone(host):
    found = adapted(HOSTS[host], 0, 2, 0, deadline=False)
    ecx = of(found, 1).ecx
    assert ecx >> 31 & 1, "hypervisor"
    assert not ecx & (1 << 3 | 1 << 5 | 1 << 24), "MONITOR, VMX, TSC deadline"
    assert ecx >> 21 & 1, "x2APIC, as KVM has it"
    assert not any(leaf.function == 0x8000_000A for leaf in found)
    assert of(adapted(HOSTS[host], 0, 2, 0, deadline=True), 1).ecx >> 24 & 1


def test_amd_leaves_count_cores():
    found = adapted(AMD, 2, 3, 0, deadline=True)
    assert of(found, 0x8000_0008).ecx == 0x2002
    assert of(found, 0x8000_0008).eax == 0x3028
    assert of(found, 0x8000_0001).ecx == 0x0040_0002  # CmpLegacy; no SVM
    assert of(adapted(AMD, 0, 1, 0, deadline=True), 0x8000_0001).ecx == 0x0040_0000
    extended = of(found, 0x8000_001E)
    assert (extended.eax, extended.ebx, extended.ecx) == (2, 2, 0)
    assert of(found, 0x8000_001D, 0).eax == 0x121
    assert of(found, 0x8000_001D, 3).eax == 2 << 14 | 0x163


def test_intel_caches_are_shared_from_level_3_on():
    found = adapted(INTEL, 0, 3, 0, deadline=True)
    assert of(found, 4, 0).eax == 3 << 26 | 0x121
    assert of(found, 4, 3).eax == 3 << 26 | 2 << 14 | 0x163
    assert of(found, 4, 4).eax == 0


def test_the_frequency_is_told_where_it_is_known():
    found = adapted(AMD, 0, 1, 2_596_108, deadline=True)
    assert of(found, 0x4000_0000).eax == 0x4000_0010
    assert (of(found, 0x4000_0010).eax, of(found, 0x4000_0010).ebx) == (2_596_108, 1_000_000)
    assert of(adapted(AMD, 0, 1, 0, deadline=True), 0x4000_0000).eax == 0x4000_0001
    assert of(found, 0x4000_0001).eax == 0x0100_7EFB  # kvmclock, asynchronous page faults, ...: as KVM has them


def test_xcr0_may_have_what_leaf_d_says():
    assert extended_states(AMD) == 0x207
    assert extended_states(INTEL) == 0


def test_this_hosts_kvm_takes_it(system):
    supported = system.supported_cpuid()
    assert 32 <= physical_bits(supported) <= 52
    with system.create_vm() as vm:
        vm.irqchip()
        for index in range(2):
            with vm.create_vcpu(index) as vcpu:
                cpuid = guest_cpuid(supported, index, 2, vcpu.tsc_khz)
                assert of(leaves(cpuid), 1).ebx >> 24 == index
                vcpu.set_cpuid(cpuid)
