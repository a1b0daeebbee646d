"""The state in which a Linux guest's first vCPU starts; the others wait for its SIPI.

Bits: AMD64 Architecture Programmer's Manual, volume 2, chapter 3. Protocols: "x86/HVM direct boot ABI" of Xen's
documentation (PVH), "64-bit Boot Protocol" of Linux's Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import GDT, PAGE_TABLES, START_INFO, ZERO_PAGE
from hostd.boot.linux.tables import CODE32, CODE64, DATA, GDT_SIZE, TASK
from hostd.kvm import Vcpu

if TYPE_CHECKING:
    from hostd.kvm._kvm import Segment, Sregs

CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS = 2  # the bit that is always set: no interrupts
CODE_TYPE, DATA_TYPE, TSS_BUSY = 0xB, 0x3, 0xB
TSS_LIMIT = 0x67


def enter_kernel(vcpu: Vcpu, kernel: Kernel) -> None:
    """Set the registers of vCPU 0: PVH where the kernel has its note, else the 64-bit boot protocol.

    Its CPUID must be set before. Call it for vCPU 0 alone: KVM leaves the others waiting for a SIPI.
    """
    if kernel.pvh is not None:
        enter_pvh(vcpu, kernel.pvh, START_INFO)
    else:
        enter_long_mode(vcpu, kernel.entry64, ZERO_PAGE)


def enter_pvh(vcpu: Vcpu, entry: int, start_info: int) -> None:
    """32-bit protected mode, flat segments, paging off, EBX = start_info (Xen's PVH boot protocol)."""
    sregs = vcpu.sregs
    _set_descriptors(sregs, CODE32)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = CR0_PE | CR0_ET, 0, 0, 0
    vcpu.sregs = sregs
    regs = vcpu.regs
    regs.rip, regs.rbx, regs.rflags = entry, start_info, RFLAGS
    vcpu.regs = regs


def enter_long_mode(vcpu: Vcpu, entry: int, zero_page: int) -> None:
    """64-bit mode, the first 4 GiB mapped to themselves, RSI = boot_params (Linux's 64-bit boot protocol)."""
    sregs = vcpu.sregs
    _set_descriptors(sregs, CODE64)
    sregs.cr0, sregs.cr3, sregs.cr4 = CR0_PE | CR0_ET | CR0_PG, PAGE_TABLES, CR4_PAE
    sregs.efer = EFER_LME | EFER_LMA
    vcpu.sregs = sregs
    regs = vcpu.regs
    regs.rip, regs.rsi, regs.rflags = entry, zero_page, RFLAGS
    vcpu.regs = regs


def _set_descriptors(sregs: Sregs, code: int) -> None:
    sregs.gdt.base, sregs.gdt.limit = GDT, GDT_SIZE - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    _set_segment(sregs.cs, code, CODE_TYPE, long_mode=code == CODE64)
    for segment in (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _set_segment(segment, DATA, DATA_TYPE, long_mode=False)
    task = sregs.tr
    task.base, task.limit, task.selector = 0, TSS_LIMIT, TASK
    task.type, task.s, task.present, task.dpl, task.unusable = TSS_BUSY, 0, 1, 0, 0


def _set_segment(segment: Segment, selector: int, kind: int, *, long_mode: bool) -> None:
    segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, selector
    segment.type, segment.s, segment.dpl, segment.present, segment.unusable = kind, 1, 0, 1, 0
    segment.g, segment.l, segment.db = 1, int(long_mode), int(not long_mode)
