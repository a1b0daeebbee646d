"""Whether this host's memory, swap and limits have what the guests of a cluster ask of them, before any is started."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable

from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Guest
from hostd.cluster.plan import Plan
from hostd.cluster.sizes import format_size
from hostd.doctor.memory import CAP_IPC_LOCK, has_capability
from hostd.memory.backings.paged import check_folder
from hostd.memory.errors import BackingError
from hostd.memory.kernel_side import table_bytes
from hostd.memory.swap import HostMemory, host_memory, no_room

RAISE_MEMLOCK = "`ulimit -l`, LimitMEMLOCK= in a systemd unit, memlock in /etc/security/limits.conf"


def check(plan: Plan) -> None:
    """Raise ClusterFileError, one sentence that names guest and key, for what can't be. Nothing is taken."""
    host = host_memory()
    for guest in plan.cluster.guests.values():
        _check_lock(guest)
        _check_paging(guest, host)
    guests = [planned.group for planned in plan.guests.values()]
    _check_sum(guests, lambda guest: bool(guest.options["prefault"]), "prefault", host.available, "available")
    _check_sum(
        guests,
        lambda guest: not guest.options["overcommit"] and not guest.options["paged"],
        "overcommit = false",
        host.available + host.swap_free,
        "of memory and swap free",
    )
    _check_tables(guests, host)


def _check_lock(guest: Guest) -> None:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if not guest.options["lock"] or limit == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK):
        return
    if guest.memory > limit:
        raise ClusterFileError(
            f"guest.{guest.name}.lock: its {guest.memory} bytes cannot be locked: RLIMIT_MEMLOCK is {limit} bytes for "
            f"each guest; raise it ({RAISE_MEMLOCK}) or leave `lock` out"
        )


def _check_paging(guest: Guest, host: HostMemory) -> None:
    where, paged = f"guest.{guest.name}", guest.options["paged"]
    if isinstance(paged, str):
        try:
            check_folder(paged)
        except BackingError as error:
            raise ClusterFileError(f"{where}.paged: {error}") from None
    elif guest.ceiling is not None:
        why = no_room(host)
        if why is not None:
            raise ClusterFileError(f"{where}.ceiling: what is above it has no place to go: {why}")


def _check_sum(guests: Iterable[Guest], counts: Callable[[Guest], bool], key: str, there: int, what: str) -> None:
    wanted = [guest for guest in guests if counts(guest)]
    needed = sum(guest.memory for guest in wanted)
    if needed > there:
        names = ", ".join(dict.fromkeys(guest.name for guest in wanted))
        raise ClusterFileError(
            f"guest.{wanted[0].name}.memory: {format_size(needed)} are to be there from the start (`{key}`: "
            f"{len(wanted)} guests of {names}), and this host has {format_size(there)} {what}; give them less, or "
            f"leave `{key}` out"
        )


def _check_tables(guests: Iterable[Guest], host: HostMemory) -> None:
    """Refuse memory for which KVM's own tables alone would starve the host."""
    sizes = [(guest, guest.memory + sum(slot.size for slot in guest.slots)) for guest in guests]
    needed = table_bytes(sum(size for _, size in sizes))
    if needed > host.available // 2:
        guest, size = max(sizes, key=lambda pair: pair[1])
        raise ClusterFileError(
            f"guest.{guest.name}.memory: {size} bytes are more than this host allows: KVM may keep "
            f"{format_size(needed)} of tables for all guests, and {format_size(host.available)} are available; give "
            "it less"
        )
