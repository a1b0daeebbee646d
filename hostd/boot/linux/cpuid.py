"""What a Linux guest's CPUs say of themselves, and the MSRs that firmware would have set."""

from __future__ import annotations

from typing import Any

from hostd.kvm import Vcpu


def physical_bits(supported: Any) -> int:
    """Return how many physical address bits guests have; `supported` is `System.supported_cpuid()`."""
    raise NotImplementedError


def guest_cpuid(supported: Any, index: int, count: int, tsc_khz: int = 0, *, deadline: bool = True) -> Any:
    """Return a `struct kvm_cpuid2 *` for vCPU `index` of `count`, for `Vcpu.set_cpuid`.

    `supported` is `System.supported_cpuid()`; `tsc_khz` the guest's TSC frequency or 0; `deadline` whether KVM has the
    APIC's TSC-deadline timer (capability TSC_DEADLINE_TIMER).
    """
    raise NotImplementedError


def set_msrs(vcpu: Vcpu) -> None:
    """Set the MSRs that firmware would: memory is write-back by default (MTRR), fast string operations are on.

    Raises KvmError.
    """
    raise NotImplementedError
