"""A switch in this process: made, given ports, asked for what it counted. Its loop is C, without the GIL."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from net._net import ffi, lib
from net.errors import NetError
from shm.region import Region

OFFLOADS = lib.PORT_TAKES_CSUM | lib.PORT_TAKES_TSO4 | lib.PORT_TAKES_TSO6 | lib.PORT_TAKES_USO
NAME_LIMIT = lib.PORT_NAME - 1


@dataclass(frozen=True)
class PortOptions:
    """What a port may do. `mac`: its own address, the only one it may send from; `uplink`: it leads out of the network.

    `isolated`: it exchanges frames with uplinks only; `rate`: bytes a second into the switch, 0 for any number;
    `offloads`: checksums and segmentation may be left to it, and to others by it.
    """

    mac: bytes | None = None
    uplink: bool = False
    isolated: bool = False
    rate: int = 0
    offloads: bool = True


class Options(TypedDict, total=False):
    """The fields of PortOptions, as keyword arguments."""

    mac: bytes | None
    uplink: bool
    isolated: bool
    rate: int
    offloads: bool


@dataclass(frozen=True)
class Counters:
    """Frames and bytes `in` to the switch, dropped ones included, and `out` to the port; since the port was added.

    `drops` by reason; `wakes`: doorbells rung for the peer; `missed`: frames the kernel lost before.
    """

    frames_in: int
    bytes_in: int
    frames_out: int
    bytes_out: int
    drops: dict[str, int]
    wakes: int
    missed: int


@dataclass(frozen=True)
class PortInfo:
    """A port. `quarantined`: why it takes part no more, or None; `field`: what of its peer's was wrong, or None."""

    name: str
    kind: str
    id: int
    up: bool
    quarantined: str | None
    field: str | None
    options: PortOptions
    counters: Counters


@dataclass(frozen=True)
class Address:
    """Where an address (6 bytes) was heard, in which VLAN (0: none), how many seconds ago (0.0: the port's own)."""

    mac: bytes
    vlan: int
    port: int
    age: float


class Switch:
    """An Ethernet switch. `mtu` in bytes (68 to 65535), `age` in seconds, `spin` in microseconds before it sleeps.

    Methods raise NetError for what can't be, in one sentence.
    """

    def __init__(self, *, mtu: int = 1500, age: int = 300, spin: int = 50, addresses: int = 4096) -> None:
        if not 68 <= mtu <= 65535:
            raise NetError(f"an MTU of {mtu} bytes is not between 68 and 65535")
        self.mtu = mtu
        self.pointer = lib.switch_new(
            ffi.new("struct switch_config *", {"mtu": mtu, "age": age, "spin": spin, "addresses": addresses})
        )
        if self.pointer == ffi.NULL:
            raise NetError(f"no switch can be made: {os.strerror(ffi.errno)}")
        self._thread: threading.Thread | None = None
        self._room = 2 * addresses + lib.SWITCH_PORTS
        self._lock = threading.Lock()  # For those who add and remove; who forwards doesn't wait for them.
        self._ids: dict[str, int] = {}
        self._options: dict[str, PortOptions] = {}
        self._regions: dict[str, Region] = {}
        self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to forward, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._failed = lib.switch_run(self.pointer)

    def close(self) -> None:
        """Stop forwarding and close all ports. Closing again does nothing."""
        with self._lock:
            if self.pointer == ffi.NULL:
                return
            if self._thread is not None:
                lib.switch_stop(self.pointer)
                self._thread.join()
            lib.switch_free(self.pointer)
            self.pointer = ffi.NULL
            for known in (self._ids, self._options, self._regions):
                known.clear()

    # --- ports -------------------------------------------------------------------------------------------------

    def add_ring(
        self, name: str, region: Region, *, out: str = "out", into: str = "in", **options: Unpack[Options]
    ) -> PortInfo:
        """Add a port whose owner sends on the channel `out` of `region` and receives from the channel `into`.

        The region must stay open until the port is removed.
        """
        field = ffi.new("const char **")

        def make() -> Any:
            return lib.ring_port_new(
                name.encode(),
                region._memory,
                region.size,
                region.channels[out].config(),
                region.channels[into].config(),
                list(region.bells),
                len(region.bells),
                field,
            )

        def reason(error: int) -> str:
            if error in (errno.EINVAL, errno.EBADMSG) and field[0] != ffi.NULL:
                return f"a ring of region {region.name} can't be used: {ffi.string(field[0]).decode()} is wrong"
            return os.strerror(error)

        info = self._add(name, make, PortOptions(**options), reason)
        self._regions[name] = region
        return info

    def add_vhost(self, name: str, path: str, **options: Unpack[Options]) -> PortInfo:
        """Add a port that listens at `path` for a vhost-user front end, and for the next one when that has gone."""
        given = PortOptions(**options)

        def make() -> Any:
            port = lib.vhost_port_new(name.encode(), os.fsencode(path), self.pointer)
            if port != ffi.NULL:
                lib.vhost_port_offloads(port, given.offloads)
            return port

        return self._add(name, make, given, lambda error: f"{path}: {os.strerror(error)}")

    def add_tap(self, name: str, interface: str, **options: Unpack[Options]) -> PortInfo:
        """Add a tap interface of that name, which is made in the calling thread's network namespace."""
        reasons = {
            errno.EBUSY: f"there is an interface {interface} already; give another name",
            errno.EPERM: "making a tap interface takes CAP_NET_ADMIN; run as root",
            errno.ENOENT: "there is no /dev/net/tun; load the module tun",
            errno.ENODEV: "there is no /dev/net/tun; load the module tun",
            errno.EINVAL: f"{interface!r} is no name for an interface; give at most 15 letters",
        }
        return self._add_interface(lib.tap_port_new, name, interface, options, reasons)

    def add_packet(self, name: str, interface: str, **options: Unpack[Options]) -> PortInfo:
        """Add an interface that exists in the calling thread's network namespace, by a packet socket."""
        reasons = {
            errno.ENODEV: f"there is no interface {interface} here; `ip link` lists them",
            errno.EPERM: "a packet socket takes CAP_NET_RAW and CAP_NET_ADMIN; run as root",
        }
        return self._add_interface(lib.packet_port_new, name, interface, options, reasons)

    def _add_interface(
        self, new: Callable[..., Any], name: str, interface: str, options: Options, reasons: dict[int, str]
    ) -> PortInfo:
        return self._add(
            name,
            lambda: new(name.encode(), interface.encode()),
            PortOptions(**options),
            lambda error: reasons.get(error, f"interface {interface}: {os.strerror(error)}"),
        )

    def _add(self, name: str, make: Callable[[], Any], options: PortOptions, reason: Callable[[int], str]) -> PortInfo:
        where = f"port {name}"
        if not 0 < len(name.encode()) <= NAME_LIMIT or "\0" in name:
            raise NetError(f"a port's name has 1 to {NAME_LIMIT} bytes, {name!r} has not")
        if options.mac is not None and (len(options.mac) != 6 or options.mac[0] & 1 or not any(options.mac)):
            raise NetError(f"{where}: {options.mac.hex(':')} is no address that an interface can have")
        with self._lock:
            self._check()
            if name in self._ids:
                raise NetError(f"{where}: there is one already; remove it or give another name")
            port = make()
            if port == ffi.NULL:
                raise NetError(f"{where}: {reason(ffi.errno)}")
            if options.mac is not None:
                port.mac = list(options.mac)
                port.flags |= lib.PORT_FIXED_MAC
            port.flags |= options.uplink * lib.PORT_UPLINK | options.isolated * lib.PORT_ISOLATED
            if not options.offloads:
                port.flags &= ~OFFLOADS
            port.rate = options.rate
            result = lib.switch_join(self.pointer, port)
            if result < 0:
                lib.port_close(port)
                raise NetError(f"{where}: {self._refusal(-result, options)}")
            self._ids[name], self._options[name] = result, options
            [info] = (info for info in self._look() if info.id == result)
            return info

    def _refusal(self, error: int, options: PortOptions) -> str:
        if error == errno.ENOSPC:
            return f"the switch has {lib.SWITCH_PORTS} ports already; remove one"
        if error == errno.EADDRINUSE and options.mac is not None:
            [owner] = (name for name, other in self._options.items() if other.mac == options.mac)
            return f"{options.mac.hex(':')} is the address of port {owner} already; give another one"
        return os.strerror(error)

    def remove(self, name: str) -> None:
        """Close a port; its addresses are forgotten."""
        with self._lock:
            self._check()
            if name not in self._ids:
                raise NetError(f"there is no port {name}")
            lib.switch_leave(self.pointer, self._ids.pop(name))
            del self._options[name]
            self._regions.pop(name, None)

    # --- what it knows -----------------------------------------------------------------------------------------

    def ports(self) -> list[PortInfo]:
        """Return the ports, as they are now, by name."""
        with self._lock:
            self._check()
            return sorted(self._look(), key=lambda info: info.name)

    def addresses(self) -> list[Address]:
        """Return the addresses that are known, by port and address."""
        with self._lock:
            self._check()
            found = ffi.new("struct switch_address[]", self._room)
            known = found[0 : lib.switch_heard(self.pointer, found, self._room)]
        listed = [Address(bytes(one.mac), one.vlan, one.port, one.age_ns / 1e9) for one in known]
        return sorted(listed, key=lambda address: (address.port, address.mac, address.vlan))

    def _look(self) -> list[PortInfo]:
        copies = ffi.new("struct port[]", len(self._ids))
        return [self._info(port) for port in copies[0 : lib.switch_look(self.pointer, copies, len(self._ids))]]

    def _info(self, port: Any) -> PortInfo:
        name = ffi.string(port.name).decode()
        counted = port.counters
        drops = {
            ffi.string(lib.drop_name(reason)).decode(): int(counted.drops[reason]) for reason in range(1, lib.DROPS)
        }
        why = ffi.string(lib.port_error_name(port.quarantined)).decode() if port.quarantined else None
        field = ffi.string(port.field).decode() if why and port.field != ffi.NULL else None
        figures = (counted.frames_in, counted.bytes_in, counted.frames_out, counted.bytes_out)
        return PortInfo(
            name,
            ffi.string(port.ops.kind).decode(),
            port.id,
            bool(port.up),
            why,
            field,
            self._options[name],
            Counters(*figures, drops, counted.wakes, counted.missed),
        )

    def _check(self) -> None:
        if self.pointer == ffi.NULL:
            raise NetError("the switch is closed")
        if self._failed:
            raise NetError(f"the switch has stopped: {os.strerror(-self._failed)}")
