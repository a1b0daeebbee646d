"""What a guest process is told about its guest (docs/guest-contract.md, hostd/vmm/guest.py)."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from hostd.cluster.model import Framebuffer, Slot
from hostd.cluster.plan import Plan, PlannedGuest
from hostd.supervisor.boots import Boot
from hostd.supervisor.regions import Regions
from net.naming import vhost_path


def guest_spec(
    guest: PlannedGuest,
    regions: Regions,
    boot: Boot,
    *,
    plan: Plan,
    directory: Path,
    foreground: bool,
    memory_group: str | None = None,
) -> dict[str, Any]:
    """Return the spec of `guest`, new at every start: its seed is random. Descriptors go beside it.

    `memory_group` is the folder of the control group that its process joins.
    """
    group = guest.group
    return {
        "cluster": plan.cluster.name,
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
        "ceiling": group.ceiling,
        "group": memory_group,
        "log_limit": group.log_limit,
        "regions": regions.describe(guest),
        "channels": regions.ends(guest),
        "slots": [_row(slot) for slot in group.slots],
        "framebuffer": None if group.framebuffer is None else _framebuffer(group.framebuffer),
        "bells": len(regions.bells(guest)),
        "doorbells": [] if group.linux is None else regions.doorbells(guest),
        "networks": _networks(guest, plan),
        "template": boot.template,
        "generation": 0 if boot.template is None else secrets.randbits(63) | 1,
    }


def _networks(guest: PlannedGuest, plan: Plan) -> list[dict[str, Any]]:
    """Return a guest's ports: a Linux guest's with their sockets, a unikernel's with regions and others' names."""
    found = []
    regions = [name for name, _ in guest.regions]
    for name, port in guest.ports.items():
        told = port.describe() | {"name": name}
        if guest.group.linux is not None:
            told |= {"path": str(vhost_path(plan.cluster.name, name, guest.name)), "queues": port.group.queues}
        else:
            others = [other for other in plan.guests.values() if name in other.ports and other.name != guest.name]
            addresses = {other.name: other.ports[name].address for other in others}
            named = {other: str(address) for other, address in addresses.items() if address is not None}
            told |= {"region": regions.index(port.region), "names": named}
        found.append(told)
    return found


def _framebuffer(framebuffer: Framebuffer) -> dict[str, Any]:
    return {
        "width": framebuffer.width,
        "height": framebuffer.height,
        "stride": framebuffer.stride,
        "size": framebuffer.size,
        "device": None if framebuffer.device is None else str(framebuffer.device),
        "offset": framebuffer.offset,
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
