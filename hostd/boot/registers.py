"""The state in which a unikernel's vCPU starts: ring 3 of 64-bit mode, port output allowed, SSE and AVX on.

Bits: AMD64 Architecture Programmer's Manual, volume 2, chapter 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hostd.boot._abi import lib
from hostd.boot.descriptors import (
    GDT,
    GDT_SIZE,
    IDT,
    RING3,
    TASK,
    TSS,
    TSS_SIZE,
    USER_CODE,
    USER_DATA,
    VECTORS,
)
from hostd.kvm import System, Vcpu

if TYPE_CHECKING:
    from hostd.kvm._kvm import Segment, Sregs

CR0 = 0x80050033  # PG, AM, WP, NE, ET, MP, PE
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE = 1 << 5, 1 << 9, 1 << 10, 1 << 18
EFER = 1 << 8 | 1 << 10 | 1 << 11  # LME, LMA, NXE
# IOPL 3 is what kvm_amd asks for a port, the TSS bitmap what kvm_pvm asks; bit 9 is IF, bit 1 is always set.
RFLAGS = 0x3202
XCR0 = 0b111  # x87, SSE, AVX
CODE, DATA, TSS_BUSY = 0xB, 0x3, 0xB  # descriptor types
GATE_SIZE = 16
_cpuid: list[Any] = []


def enter_ring3(system: System, vcpu: Vcpu, entry: int, stack: int) -> None:
    """Set every register of `vcpu` so that it starts at `entry` with RSP = `stack` and RDI = the info area."""
    cpuid = _supported_cpuid(system)
    vcpu.set_cpuid(cpuid)
    sregs = vcpu.sregs
    _set_descriptors(sregs)
    sregs.cr0, sregs.cr3, sregs.efer = CR0, lib.GUEST_TABLES, EFER
    avx = has_avx(cpuid)
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | (CR4_OSXSAVE if avx else 0)
    vcpu.sregs = sregs
    if avx:
        vcpu.xcrs = {0: XCR0}
    regs = vcpu.regs
    regs.rip, regs.rsp, regs.rdi, regs.rflags = entry, stack, lib.GUEST_INFO, RFLAGS
    vcpu.regs = regs


def back_to_ring3(vcpu: Vcpu, rip: int, rflags: int, rsp: int, rax: int) -> None:
    """Undo an exception whose stub has come to its port: `vcpu` stands in ring 3 again, where the frame says."""
    sregs = vcpu.sregs
    _set_segment(sregs.cs, USER_CODE, CODE, long_mode=True)
    _set_segment(sregs.ss, USER_DATA, DATA, long_mode=False)
    vcpu.sregs = sregs
    regs = vcpu.regs
    regs.rip, regs.rflags, regs.rsp, regs.rax = rip, rflags, rsp, rax
    vcpu.regs = regs


def _supported_cpuid(system: System) -> Any:
    """Return KVM's CPUID entries; asked once, in the warm parent: they are the same for every guest."""
    if not _cpuid:
        _cpuid.append(system.supported_cpuid())
    return _cpuid[0]


def _set_descriptors(sregs: Sregs) -> None:
    """Point the segments and tables at the system page, as `descriptors.system_page` lays it out."""
    base = lib.GUEST_SYSTEM_PAGE
    sregs.gdt.base, sregs.gdt.limit = base + GDT, GDT_SIZE - 1
    sregs.idt.base, sregs.idt.limit = base + IDT, VECTORS * GATE_SIZE - 1
    task = sregs.tr
    task.base, task.limit, task.selector = base + TSS, TSS_SIZE - 1, TASK
    task.type, task.s, task.present, task.dpl, task.unusable = TSS_BUSY, 0, 1, 0, 0
    _set_segment(sregs.cs, USER_CODE, CODE, long_mode=True)
    for segment in (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _set_segment(segment, USER_DATA, DATA, long_mode=False)


def _set_segment(segment: Segment, selector: int, kind: int, *, long_mode: bool) -> None:
    segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, selector | RING3
    segment.type, segment.s, segment.dpl, segment.present, segment.unusable = kind, 1, RING3, 1, 0
    segment.g, segment.l, segment.db = 1, int(long_mode), int(not long_mode)


def has_avx(cpuid: Any) -> bool:
    """Tell whether KVM's CPUID entries offer XSAVE and AVX (leaf 1, ECX bits 26 and 28)."""
    entries = cpuid.entries[0 : cpuid.nent]
    leaf = next((entry.ecx for entry in entries if entry.function == 1), 0)
    return bool(leaf >> 26 & 1 and leaf >> 28 & 1)
