"""Whether this host makes the transparent huge pages that a guest asks for: asking always succeeds."""

from __future__ import annotations

from pathlib import Path

from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Guest

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
NO = {"enabled": ("never",), "shmem_enabled": ("never", "deny")}
"""settings of the kernel (Linux, admin-guide/mm/transhuge.rst), and those of their values with which it makes none"""


def check(guest: Guest, settings: Path = SETTINGS) -> None:
    """Raise ClusterFileError where `thp = true` would change nothing."""
    if guest.options["thp"] is not True:
        return
    where = f"guest.{guest.name}.thp"
    if guest.options["paged"]:
        raise ClusterFileError(f"{where}: its RAM is a file (`paged`), which has none; remove one of them")
    shared = guest.linux is not None and bool(guest.ports)
    name = "shmem_enabled" if shared else "enabled"
    try:
        mode = (settings / name).read_text().partition("[")[2].partition("]")[0]
    except OSError:
        raise ClusterFileError(f"{where}: this kernel has no transparent huge pages; leave `thp` out") from None
    if mode in NO[name]:
        why = "for memory that a network's switch is given too" if shared else "at all"
        better = "advise" if shared else "madvise"
        raise ClusterFileError(
            f"{where}: this host makes no transparent huge pages {why} ({settings / name} is {mode}); "
            f"`echo {better} > {settings / name}` as root, or leave `thp` out"
        )
