"""The device, capabilities, CPUID, statistics."""

from __future__ import annotations

import pytest
from machine import CODE, HLT, Machine, build, out

from hostd.kvm import Debug, Hlt, KvmError, System


def test_version_and_capabilities(system: System) -> None:
    assert system.api_version == 12
    for name in ("USER_MEMORY", "IOEVENTFD", "IMMEDIATE_EXIT", "READONLY_MEM", "SYNC_MMU"):
        assert system.capability(name) > 0, name
    assert system.capability("NR_MEMSLOTS") >= 32
    assert system.capability(10) == system.capability("NR_MEMSLOTS")


def test_cpuid_names_a_vendor(system: System) -> None:
    cpuid = system.supported_cpuid()
    [leaf] = [e for e in cpuid.entries[0 : cpuid.nent] if e.function == 0]
    vendor = b"".join(value.to_bytes(4, "little") for value in (leaf.ebx, leaf.edx, leaf.ecx))
    assert vendor in (b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine", b"CentaurHauls", b"  Shanghai  ")


def test_msr_list(system: System) -> None:
    assert 0x10 in system.msr_indices()  # the time-stamp counter


def test_guest_sees_the_cpuid_it_was_given(system: System) -> None:
    machine = build(system)
    cpuid = system.supported_cpuid()
    for entry in cpuid.entries[0 : cpuid.nent]:
        if entry.function == 1:
            entry.eax = 0x12345
    machine.vcpu.set_cpuid(cpuid)
    machine.real_mode(bytes.fromhex("66 b8 01 00 00 00 0f a2") + HLT)  # mov $1, %eax; cpuid
    assert machine.vcpu.run() == Hlt()
    assert machine.vcpu.regs.rax & 0xFFFFFFFF == 0x12345
    machine.close()


def test_statistics(machine: Machine) -> None:
    machine.real_mode(out(1) + HLT)
    before = machine.vcpu.stats()
    machine.vcpu.run()
    machine.vcpu.run()
    after = machine.vcpu.stats()
    assert isinstance(after["exits"], int)
    assert isinstance(before["exits"], int)
    assert after["exits"] > before["exits"]
    assert "remote_tlb_flush" in machine.vm.stats()


def test_tsc_frequency(machine: Machine) -> None:
    assert 100_000 < machine.vcpu.tsc_khz < 20_000_000


def test_single_step(machine: Machine) -> None:
    machine.real_mode(bytes.fromhex("40 40 40") + HLT)  # inc %ax, three times
    machine.vcpu.single_step(True)
    event = machine.vcpu.run()
    assert isinstance(event, Debug)
    assert event.address == CODE + 1
    machine.vcpu.single_step(False)
    assert machine.vcpu.run() == Hlt()


def test_irqchips(system: System) -> None:
    with system.create_vm() as vm:
        vm.irqchip()
        vm.pit()
        vm.irq_line(3, True)
        with vm.create_vcpu(0):
            assert isinstance(vm.signal_msi(0xFEE00000, 0x30), bool)
    with system.create_vm() as vm:
        vm.irqchip(split_pins=24)
        with pytest.raises(KvmError, match="KVM_CREATE_IRQCHIP"):
            vm.irqchip()


def test_mp_state(system: System) -> None:
    machine = build(system, irqchip=True)
    assert machine.vcpu.mp_state == 0
    machine.vcpu.mp_state = 3
    assert machine.vcpu.mp_state == 3
    machine.close()
