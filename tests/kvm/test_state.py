"""Saving a vCPU's state, and putting it into another VM."""

from __future__ import annotations

import msgpack
import pytest

from hostd.doctor.probe import KvmKind, examine
from hostd.kvm import System
from hostd.kvm.state import TSC, elapsed_ns, restore_vcpu, restore_vm, save_vcpu, save_vm

XMM3, HEADER, SSE = 160 + 3 * 16, 512, 2
"""bytes in an XSAVE area, and the bit that says that the XMM registers are there (Intel SDM, volume 1, 13.4)"""


def test_a_vcpu_is_in_another_vm_what_it_was() -> None:
    with System.open() as system, system.create_vm() as first, system.create_vm() as second:
        with first.create_vcpu() as one, second.create_vcpu() as other:
            for vcpu in (one, other):
                vcpu.set_cpuid(system.supported_cpuid())
            regs = one.regs
            regs.rax, regs.r15, regs.rip, regs.rflags = 0x1234_5678_9ABC_DEF0, 15, 0x10_0000, 0x202
            one.regs = regs
            sregs = one.sregs
            sregs.fs.base = 0x7000
            one.sregs = sregs
            area = bytearray(save_vcpu(one)["xsave"])
            area[XMM3], area[HEADER] = 77, area[HEADER] | SSE
            restore_vcpu(one, save_vcpu(one) | {"xsave": bytes(area)})
            state = msgpack.unpackb(msgpack.packb({"vcpu": save_vcpu(one), "vm": save_vm(first)}), strict_map_key=False)
            restore_vcpu(other, state["vcpu"])
            restore_vm(second, state["vm"])
            assert (other.regs.rax, other.regs.r15, other.regs.rip) == (0x1234_5678_9ABC_DEF0, 15, 0x10_0000)
            assert other.sregs.fs.base == 0x7000
            assert other.fpu.xmm[3][0] == 77
            assert save_vcpu(other)["sregs"] == state["vcpu"]["sregs"]


def test_time_goes_on_as_if_it_had_run_meanwhile() -> None:
    hour = 3600 * 10**9
    with System.open() as system, system.create_vm() as first, system.create_vm() as second:
        with first.create_vcpu() as one, second.create_vcpu() as other:
            for vcpu in (one, other):
                vcpu.set_cpuid(system.supported_cpuid())
            saved, clocks = save_vcpu(one, [TSC]), save_vm(first)
            assert elapsed_ns(clocks) < hour
            assert elapsed_ns(clocks | {"clock": [0, clocks["clock"][1] - hour]}) >= hour
            assert elapsed_ns(clocks | {"clock": [0, clocks["clock"][1] + hour]}) == 0, "the host's clock was set back"
            restore_vcpu(other, saved, hour)
            restore_vm(second, clocks, hour)
            ticks = other.get_msrs(TSC)[TSC] - dict(saved["msrs"])[TSC]
            if examine()[0] is KvmKind.FULL:  # Others show the host's, which has gone on.
                assert 0 <= ticks * 10**6 // other.tsc_khz - hour < hour
            assert 0 <= save_vm(second)["clock"][0] - clocks["clock"][0] - hour < hour


def test_a_state_that_is_none_is_refused() -> None:
    with System.open() as system, system.create_vm() as vm, vm.create_vcpu() as vcpu:
        state = save_vcpu(vcpu)
        with pytest.raises(ValueError, match=r"3 bytes are no struct kvm_regs, which has \d+"):
            restore_vcpu(vcpu, state | {"regs": b"abc"})
