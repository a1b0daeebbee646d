"""The state in which a Linux guest's first vCPU starts; the others wait for its SIPI."""

from __future__ import annotations

from hostd.boot.linux.kernel import Kernel
from hostd.kvm import Vcpu


def enter_kernel(vcpu: Vcpu, kernel: Kernel) -> None:
    """Set the registers of vCPU 0: PVH where the kernel has its note, else the 64-bit boot protocol.

    Its CPUID must be set before. Call it for vCPU 0 alone: KVM leaves the others waiting for a SIPI.
    """
    raise NotImplementedError


def enter_pvh(vcpu: Vcpu, entry: int, start_info: int) -> None:
    """32-bit protected mode, flat segments, paging off, EBX = start_info (Xen's PVH boot protocol)."""
    raise NotImplementedError


def enter_long_mode(vcpu: Vcpu, entry: int, zero_page: int) -> None:
    """64-bit mode, the first 4 GiB mapped to themselves, RSI = boot_params (Linux's 64-bit boot protocol)."""
    raise NotImplementedError
