"""The captures of a switch process: who sees which frames (src/capture.h). The reading side is `net.capture`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from net._net import ffi, lib
from net.errors import NetError
from shm.region import Region


@dataclass
class Running:
    """A capture that goes on, and whose it is."""

    capture: Any
    region: Region
    ports: list[str]
    holder: object


class Captures:
    """The captures of the switch at `pointer`; to be closed before it is freed."""

    def __init__(self, pointer: Any) -> None:
        self._captures = lib.captures_new(pointer)
        if self._captures == ffi.NULL:
            raise MemoryError
        self._running: list[Running] = []

    def add(
        self,
        region: Region,
        channel: str,
        holder: object,
        *,
        ports: list[str],
        macs: Iterable[bytes],
        snap: int,
        numbers: Mapping[str, int],
        where: str,
    ) -> None:
        """Copy frames into a channel of `region`, which is this object's then, as long as `holder` holds it.

        `numbers`: of the switch's ports, by name; `ports`, `macs` and `snap` as in `net.requests.capture`. `where`: of
        what a NetError tells.
        """
        wanted = ffi.new("struct capture_filter *")
        macs = list(macs)
        wanted.by_port, wanted.by_mac = bool(ports), bool(macs)
        wanted.mac_count = len(macs)
        for number, mac in enumerate(macs):
            wanted.macs[number] = list(mac)
        field = ffi.new("const char **")
        capture = lib.capture_add(
            self._captures,
            region._memory,
            region.size,
            region.channels[channel].config(),
            wanted,
            snap or lib.FRAME_MAX,
            field,
        )
        if capture == ffi.NULL:
            raise NetError(f"{where}: {_reason(ffi.errno, field[0])}")
        running = Running(capture, region, ports, holder)
        self._running.append(running)
        self._find_ports(running, numbers)

    def refresh(self, numbers: Mapping[str, int]) -> None:
        """Ports have come or gone: find those that are looked at by name."""
        for running in self._running:
            if running.ports:
                self._find_ports(running, numbers)

    def _find_ports(self, running: Running, numbers: Mapping[str, int]) -> None:
        found = [numbers[name] for name in running.ports if name in numbers]
        lib.capture_set_ports(self._captures, running.capture, found, len(found))

    def drop(self, holder: object) -> None:
        """End what `holder`, who is gone, held."""
        for running in [running for running in self._running if running.holder is holder]:
            self._running.remove(running)
            lib.capture_remove(self._captures, running.capture)
            running.region.close()

    def describe(self, holder: object) -> list[dict[str, Any]]:
        """Return what is known of each; "yours" are those of `holder`."""
        counters = ffi.new("struct capture_counters *")
        found = []
        for running in self._running:
            lib.capture_look(self._captures, running.capture, counters)
            field = None if counters.field == ffi.NULL else ffi.string(counters.field).decode()
            known = {key: getattr(counters, key) for key in ("frames", "bytes", "lost")}
            known |= {"ports": running.ports, "broken": field, "yours": running.holder is holder}
            found.append(known)
        return found

    def close(self) -> None:
        """End all."""
        for holder in {id(running.holder): running.holder for running in self._running}.values():
            self.drop(holder)
        lib.captures_free(self._captures)


def _reason(error: int, field: Any) -> str:
    if error == errno.EINVAL and field != ffi.NULL:
        return f"its ring can't be used: {ffi.string(field).decode()} is wrong"
    if error == errno.ENOSPC:
        return f"{lib.CAPTURES} captures run already; end one"
    return os.strerror(error)
