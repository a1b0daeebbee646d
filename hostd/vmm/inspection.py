"""Calls that look into a guest's memory while it runs: by virtual address, for a pattern; and that write to it."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hostd.memory import Row, SlotError, SlotTable
from hostd.memory.layout import PAGE
from hostd.memory.translation import Paging, pieces

if TYPE_CHECKING:
    from hostd.vmm.guest import Guest
    from hostd.vmm.linux import LinuxGuest
    from hostd.vmm.process import GuestProcess

LIMIT = 1 << 20
"""bytes of one read or write"""
CHUNK = 1 << 20
SLICE = 1.0
"""seconds that one search takes at most before it answers how far it has come"""
LONGEST_PATTERN = 4096
MATCHES = 4096
PRESENT, SWAPPED = 1 << 63, 1 << 62
"""bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)"""


def read_virtual(process: GuestProcess, message: dict[str, Any]) -> bytes:
    """Return up to 1 MiB from a virtual address on, as vCPU 0 sees it.

    The guest stands still for as long as it takes to ask which tables count. Raises ValueError.
    """
    guest, address, size = _guest(process), message["address"], message["size"]
    if not 0 <= size <= LIMIT:
        raise ValueError(f"size must be 0 to {LIMIT} bytes")
    return b"".join(guest.table.read(gpa, count) for gpa, count in _translated(guest, address, size))


def write(process: GuestProcess, message: dict[str, Any]) -> int:
    """Write `data` at guest physical, or with `virtual` virtual, `address`; return its size. Raises ValueError."""
    guest, address, data = _guest(process), message["address"], message["data"]
    if not isinstance(data, bytes) or len(data) > LIMIT:
        raise ValueError(f"data must be 0 to {LIMIT} bytes")
    if guest.debugger is not None:
        raise ValueError("a debugger is attached to it; write to its memory from there")
    places = _translated(guest, address, len(data)) if message.get("virtual") else [(address, len(data))]
    for gpa, count in places:
        _check_writable(guest, gpa, count)
    at = 0
    for gpa, count in places:
        guest.table.write(gpa, data[at : at + count])
        at += count
    return len(data)


def search(process: GuestProcess, message: dict[str, Any]) -> dict[str, Any]:
    """Look for `pattern` from physical address `start` on, in the rows named `slot` or all but devices.

    Returns {"matches": addresses, at most `limit`, "next": where to go on, None at the end}. Memory that the guest has
    never touched is not touched here either. Raises ValueError.
    """
    guest, pattern = _guest(process), message["pattern"]
    limit = min(int(message.get("limit") or MATCHES), MATCHES)
    if not isinstance(pattern, bytes) or not 0 < len(pattern) <= LONGEST_PATTERN:
        raise ValueError(f"a pattern has 1 to {LONGEST_PATTERN} bytes")
    rows = _meant(guest, message.get("slot"))
    matches: list[int] = []
    deadline, tail, tail_end = time.monotonic() + SLICE, b"", -1
    for gpa, data in _held(guest.table, rows, int(message.get("start") or 0)):
        joined = tail + data if tail_end == gpa else data
        first = gpa + len(data) - len(joined)
        at = joined.find(pattern)
        while at >= 0:
            matches.append(first + at)
            if len(matches) >= limit:
                return {"matches": matches, "next": first + at + 1}
            at = joined.find(pattern, at + 1)
        tail, tail_end = joined[len(joined) - len(pattern) + 1 :] if len(pattern) > 1 else b"", gpa + len(data)
        if time.monotonic() > deadline:
            return {"matches": matches, "next": tail_end - len(tail)}
    return {"matches": matches, "next": None}


def _guest(process: GuestProcess) -> Guest | LinuxGuest:
    if process.guest is None or process.result is not None:
        raise ValueError("its guest does not run")
    return process.guest


def _translated(guest: Guest | LinuxGuest, address: int, size: int) -> list[tuple[int, int]]:
    with guest.pause.paused():
        paging = Paging.of(guest.vcpus[0].sregs)
        found = list(pieces(guest.table.read, paging, address, size))
    at, places = address, []
    for gpa, count in found:
        if gpa is None:
            raise ValueError(f"nothing is mapped at virtual address {at:#x}")
        places.append((gpa, count))
        at += count
    return places


def _check_writable(guest: Guest | LinuxGuest, gpa: int, size: int) -> None:
    end = gpa + size
    while gpa < end:
        row = guest.table.find(gpa)
        if row is None:
            raise SlotError(f"guest address {gpa:#x} is in no slot")
        if not row.writable:
            raise SlotError(f"guest address {gpa:#x} is in slot {row.name}, which is read-only")
        gpa = row.end


def _meant(guest: Guest | LinuxGuest, slot: str | None) -> list[Row]:
    rows = [row for row in guest.table if (row.backing.kind != "device" if slot is None else row.name == slot)]
    if slot is not None and not rows:
        names = ", ".join(dict.fromkeys(row.name for row in guest.table))
        raise ValueError(f"it has no slot {slot!r}; it has {names}")
    return rows


def _held(table: SlotTable, rows: list[Row], start: int) -> Iterator[tuple[int, bytes]]:
    """Yield what the rows hold from guest address `start` on, without what was never written: address and bytes."""
    for row in rows:
        at = max(row.gpa, start)
        while at < row.end:
            size = min(CHUNK - at % CHUNK, row.end - at)
            yield from _touched(table.view(at, size, writable=False), row, at)
            at += size


def _touched(view: memoryview, row: Row, gpa: int) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of `view`, the row's memory from `gpa` on, that hold something."""
    if row.backing.shared or row.backing.describe()["source"] is not None:
        yield gpa, bytes(view)
        return
    first, skew = (row.hva + gpa - row.gpa) // PAGE, gpa % PAGE
    count = -(-(skew + len(view)) // PAGE)
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        words = struct.unpack(f"<{count}Q", os.pread(pagemap.fileno(), count * 8, first * 8))
    for number, word in enumerate(words):
        if word & (PRESENT | SWAPPED):
            begin = max(number * PAGE - skew, 0)
            yield gpa + begin, bytes(view[begin : (number + 1) * PAGE - skew])
