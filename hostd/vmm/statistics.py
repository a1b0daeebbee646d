"""What KVM, the run loop and the kernel count of a guest, and which pages it writes."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostd.vmm.guest import Guest
    from hostd.vmm.linux import LinuxGuest
    from hostd.vmm.process import GuestProcess


def statistics(process: GuestProcess, _message: dict[str, Any]) -> dict[str, Any]:
    """Return {"vm", "vcpus": [{"kvm", "exits", "served"}], "process"}, see docs/statistics.md.

    Raises ValueError, OSError.
    """
    guest = _running(process)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "vm": guest.vm.stats(),
        "vcpus": [
            {"kvm": vcpu.stats(), "exits": vcpu.exit_reasons, "served": vcpu.counters["handled"]}
            for vcpu in guest.vcpus
        ],
        "process": {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "minor_faults": usage.ru_minflt,
            "major_faults": usage.ru_majflt,
            "waits": usage.ru_nvcsw,
            "preempted": usage.ru_nivcsw,
        },
    }


def log_dirty(process: GuestProcess, message: dict[str, Any]) -> dict[str, int]:
    """Begin (`on`) to note which pages the guest writes; or end that, and return how many of each row there were.

    Raises ValueError, OSError.
    """
    guest = _running(process)
    if message["on"]:
        guest.table.log_dirty(True)
        return {}
    try:
        return guest.table.dirty_pages()
    finally:
        guest.table.log_dirty(False)


def _running(process: GuestProcess) -> Guest | LinuxGuest:
    if process.guest is None or process.result is not None:
        raise ValueError("its guest does not run")
    return process.guest
