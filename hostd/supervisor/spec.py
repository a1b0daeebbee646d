"""What a guest process is told about its guest (docs/guest-contract.md, hostd/vmm/guest.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hostd.cluster.model import Slot
from hostd.cluster.plan import PlannedGuest
from hostd.supervisor.boots import Boot
from hostd.supervisor.regions import Regions


def guest_spec(
    guest: PlannedGuest,
    regions: Regions,
    boot: Boot,
    *,
    cluster: str,
    directory: Path,
    foreground: bool,
) -> dict[str, Any]:
    """Return the spec of `guest`, new at every start: its seed is random. Descriptors go beside it."""
    group = guest.group
    return {
        "cluster": cluster,
        "name": guest.name,
        "dir": str(directory),
        "lifeline": foreground,
        "memory": group.memory,
        "args": list(group.args),
        "env": dict(group.env),
        "cpu": list(group.cpus) or None,
        "seed": os.urandom(32),
        "kind": "unikernel" if group.linux is None else "linux",
        "image": boot.description,
        "options": dict(group.options),
        "log_limit": group.log_limit,
        "regions": regions.describe(guest),
        "channels": regions.ends(guest),
        "slots": [_row(slot) for slot in group.slots],
        "bells": len(regions.bells(guest)),
        "doorbells": [] if group.linux is None else regions.doorbells(guest),
    }


def _row(slot: Slot) -> dict[str, Any]:
    return {
        "name": slot.name,
        "gpa": slot.gpa,
        "size": slot.size,
        "backing": slot.backing,
        "path": None if slot.path is None else str(slot.path),
        "offset": slot.offset,
        "access": slot.access,
    }
