"""virtio-net: a network card whose queues another process serves, by vhost-user (virtio 1.2, 5.1)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hostd.devices._devices import ffi, lib
from hostd.devices.machine import DeviceError
from hostd.devices.virtio.device import VirtioDevice
from hostd.memory import Row, Shared, SlotTable

if TYPE_CHECKING:
    from hostd.devices.machine import Machine

PATIENCE_MS = 250
"""how long a device waits, before the guest starts, for a back end that is there to say what it can"""
MTU_LEAST, MTU_MOST = 68, 65535
MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)


class Net(VirtioDevice):
    """A network card; its back end listens at `path`."""

    kind = "net"

    def __init__(self, machine: Machine, device: Any, name: str, path: str, mac: str, mtu: int, shared: int) -> None:
        super().__init__(machine, device, name)
        self.path, self.mac, self.mtu = path, mac, mtu
        self.shared = shared

    def describe(self) -> dict[str, Any]:
        view = ffi.new("struct virtio_net_view *")
        lib.virtio_net_look(self.c, view)
        counters = ("connections", "reconnects", "lost", "failures", "queue_errors", "commands", "refused")
        return {
            **super().describe(),
            "path": self.path,
            "mac": self.mac,
            "mtu": self.mtu,
            "shared": self.shared,
            "state": ffi.string(view.state).decode(),
            "reason": ffi.string(view.reason).decode(errors="replace"),
            "back_end_features": f"{view.offered:#x}",
            "pairs": view.shown,
            "active_pairs": view.active,
            **{counter: getattr(view, counter) for counter in counters},
        }


def add_net(
    machine: Machine,
    table: SlotTable,
    path: str | os.PathLike[str],
    *,
    mac: str,
    mtu: int = 1500,
    queues: int = 1,
    name: str = "net",
) -> Net:
    """Add a network card with the address `mac` and at most `queues` pairs of queues.

    At `path` a vhost-user back end listens, now or later: the card waits for it, and connects again when it was gone.
    It is given those rows of `table` that can be shared (`RamFile`, which stays open as long as the machine is).
    Raises DeviceError.
    """
    where, text = f"net {name}", os.fspath(path)
    if not MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16):
        raise DeviceError(22, f"{where}: {mac!r} is no address of one card, as 02:00:00:00:00:01 is")
    if not MTU_LEAST <= mtu <= MTU_MOST:
        raise DeviceError(22, f"{where}: its MTU is {mtu}; it can be {MTU_LEAST} to {MTU_MOST} bytes")
    if not 1 <= queues <= lib.NET_PAIRS:
        raise DeviceError(22, f"{where}: it has {queues} pairs of queues; it can have 1 to {lib.NET_PAIRS}")
    if len(os.fsencode(text)) > lib.VHOST_PATH - 1 or "\0" in text:
        raise DeviceError(36, f"{where}: {text} is longer than a socket's path can be ({lib.VHOST_PATH - 1} bytes)")
    shares = _shares(table)
    if not shares:
        raise DeviceError(22, f"{where}: the guest's memory is its own; a back end needs memory that it can share")
    if len(shares) > lib.VHOST_SHARES:
        raise DeviceError(
            22, f"{where}: the guest's memory is in {len(shares)} parts; at most {lib.VHOST_SHARES} can be told"
        )
    c_shares, c_path = ffi.new("struct vhost_share[]", shares), ffi.new("char[]", os.fsencode(text))
    setup = ffi.new(
        "struct virtio_net_setup *",
        (c_path, list(bytes.fromhex(mac.replace(":", ""))), mtu, queues, c_shares, len(shares)),
    )
    device = lib.virtio_net_new(machine.memory, setup)
    net = Net(machine, device, name, text, mac.lower(), mtu, sum(size for _, size, _, _ in shares))
    lib.virtio_net_connect(device, PATIENCE_MS)
    return net


def _shares(table: Iterable[Row]) -> list[tuple[int, int, int, int]]:
    """Return (gpa, size, offset in the file, descriptor) of all memory that can be shared, neighbours together."""
    shares: list[tuple[int, int, int, int]] = []
    for row in sorted(table, key=lambda row: row.gpa):
        if not isinstance(row.backing, Shared) or not row.writable:
            continue
        offset, descriptor = row.backing.offset, row.backing.descriptor
        if shares:
            gpa, size, at, before = shares[-1]
            if (gpa + size, at + size, before) == (row.gpa, offset, descriptor):
                shares[-1] = gpa, size + row.size, at, before
                continue
        shares.append((row.gpa, row.size, offset, descriptor))
    return shares
