"""KVM: is it there, is it ours, what can it run."""

from __future__ import annotations

from hostd.doctor.check import Check
from hostd.doctor.probe import KvmKind, examine
from hostd.kvm import NoKvmError, System
from hostd.kvm.system import DEVICE

NEEDED = ("USER_MEMORY", "IOEVENTFD", "IMMEDIATE_EXIT", "READONLY_MEM", "SYNC_MMU")
FOR_LINUX = ("IRQCHIP", "IRQFD", "IRQFD_RESAMPLE", "SIGNAL_MSI")


def check_kvm(device: str = DEVICE) -> Check:
    """Tell no KVM, no permission, unikernels only and full KVM apart, by trying."""
    kind, seen = examine(device)
    if kind is KvmKind.FULL:
        return Check("kvm", "ok", f"full: {seen}; unikernels and Linux guests run")
    if kind is KvmKind.UNIKERNEL:
        return Check(
            "kvm",
            "warn",
            f"unikernels only: {seen}",
            "nothing to do for unikernels; Linux guests run in the lab: `hostd lab -- COMMAND`",
        )
    what, _, todo = seen.partition(": ")
    if kind is KvmKind.BROKEN:
        return Check("kvm", "fail", f"KVM does not run a guest: {seen}", "look at `dmesg` for what KVM says")
    return Check("kvm", "fail", what, f"{todo}; or run in the lab: `hostd lab -- COMMAND`")


def check_capabilities(device: str = DEVICE) -> Check:
    """Look at what hostd needs of KVM besides running code."""
    try:
        with System.open(device) as system:
            missing = [name for name in NEEDED if not system.capability(name)]
            linux = [name for name in FOR_LINUX if not system.capability(name)]
            slots = system.capability("NR_MEMSLOTS")
    except NoKvmError:
        return Check("kvm features", "fail", "not known without KVM", "see kvm above")
    if missing:
        return Check("kvm features", "fail", f"KVM lacks {', '.join(missing)}", "use a newer kernel")
    if linux:
        return Check("kvm features", "warn", f"KVM lacks {', '.join(linux)}", "use a newer kernel")
    return Check("kvm features", "ok", f"ioeventfd, irqfd, read-only memory, {slots} slots in each guest")
