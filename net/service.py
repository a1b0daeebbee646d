"""What a switch process does when it is asked to: the ops of its control socket, by name, over the Switch."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from net import naming
from net.captures import Captures
from net.errors import NetError
from net.fields import U32, Fields
from net.folder import Folder
from net.fronts import front
from net.switch import PortOptions, Switch
from shm.layout import PAGE, ChannelInfo
from shm.region import Region

if TYPE_CHECKING:
    from net.switch import PortInfo

OFFLOAD_SIZE, ETHERNET_SIZE = 12, 18
"""bytes that a message has before a frame, and a frame, with a VLAN tag, beside its payload"""
MEMORY_LIMIT = 1 << 36
RATE_LIMIT = 1 << 40
BELLS = 4
SPIN = 50
"""microseconds"""
TERMS = 64
"""ports, and addresses, that one capture may look for"""

Op = Callable[[Fields, list[int], object], Any]


def message_size(mtu: int) -> int:
    """Return the bytes of the largest message on a ring of a port."""
    return OFFLOAD_SIZE + mtu + ETHERNET_SIZE


class Service:
    """A network's switch and what belongs to its ports. Holders are connections: what they hold ends with them."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        fields = Fields("the configuration", configuration)
        self.cluster, self.network = naming.split(f"{fields.text('cluster')}/{fields.text('network')}")
        self.mtu = fields.number("mtu", 68, 65535, 1500)
        age, spin = fields.number("age", 1, 1 << 24, 300), fields.number_or_none("spin", 0, 10_000_000)
        addresses = fields.number("addresses", 16, 1 << 20, 4096)
        self.lifeline = fields.flag("lifeline", True)
        self._cpu = fields.number_or_none("cpu", 0, 4095)
        fields.end()
        # Then guests stand still while it runs: it doesn't spin, and lets them send more before it begins.
        self._one_cpu = len(os.sched_getaffinity(0)) == 1
        if spin is None:
            spin = 0 if self._one_cpu else SPIN
        self.folder = Folder(self.cluster, self.network)
        try:
            self._switch = Switch(mtu=self.mtu, age=age, spin=spin, addresses=addresses)
        except BaseException:
            self.folder.remove()
            raise
        self._captures = Captures(self._switch.pointer)
        self._regions: dict[str, Region] = {}
        self._paths: dict[str, str] = {}
        self._holders: dict[str, object] = {}
        self.stopping = False
        self.ops: dict[str, Op] = {
            "show": self._show,
            "add_ring": self._add_ring,
            "add_vhost": self._add_vhost,
            "add_tap": self._add_tap,
            "add_packet": self._add_packet,
            "remove": self._remove,
            "capture": self._capture,
            "stop": self._stop,
        }

    @property
    def name(self) -> str:
        return f"{self.cluster}/{self.network}"

    def start(self) -> None:
        """Begin to forward; add the ports that a killed switch kept. Raises NetError, OSError."""
        allowed = os.sched_getaffinity(0)
        if self._cpu is not None:
            os.sched_setaffinity(0, [self._cpu])
        policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
        if self._one_cpu and policy == os.SCHED_OTHER:
            # A thread of this policy that is woken does not interrupt who runs.
            os.sched_setscheduler(0, os.SCHED_BATCH, priority)
        try:
            self._switch.start()  # The thread takes affinity and policy over.
        finally:
            os.sched_setaffinity(0, allowed)
            os.sched_setscheduler(0, policy, priority)
        for name, request in list(self.folder.attached.items()):
            try:
                self.call(request, [], None)
            except (NetError, OSError) as error:
                print(f"network {self.name}: port {name} is lost: {error}", file=sys.stderr, flush=True)
                del self.folder.attached[name]
        self.folder.keep()

    def hello(self) -> dict[str, Any]:
        """Return what everybody is told who connects."""
        return {"cluster": self.cluster, "network": self.network, "mtu": self.mtu, "pid": os.getpid()}

    def call(self, request: Mapping[str, Any], descriptors: list[int], holder: object) -> Any:
        """Do what a request asks; the descriptors it takes over are gone from the list.

        Raises NetError, ShmError, OSError.
        """
        fields = Fields(f"network {self.name}", request)
        name = fields.text("op")
        op = self.ops.get(name)
        if op is None:
            raise NetError(f"network {self.name}: there is no op {name!r}")
        fields.where = f"network {self.name}: {name}"
        return op(fields, descriptors, holder)

    def drop(self, holder: object) -> None:
        """Remove what `holder`, who is gone, held."""
        for name in [name for name, other in self._holders.items() if other is holder]:
            self._take_away(name)
        self._captures.drop(holder)

    def close(self) -> None:
        """Close the switch with all its ports and captures."""
        self._captures.close()
        self._switch.close()
        for region in self._regions.values():
            region.close()
        self._regions.clear()
        self.folder.remove()

    # --- ops ---------------------------------------------------------------------------------------------------

    def _show(self, fields: Fields, descriptors: list[int], holder: object) -> dict[str, Any]:
        _none(fields, descriptors)
        ports = self._switch.ports()
        names = {port.id: port.name for port in ports}
        addresses = [asdict(address) | {"port": names.get(address.port)} for address in self._switch.addresses()]
        return {
            **self.hello(),
            "ports": [self._describe(port) for port in ports],
            "addresses": addresses,
            "captures": self._captures.describe(holder),
        }

    def _describe(self, port: PortInfo) -> dict[str, Any]:
        known: dict[str, Any] = asdict(port)
        options: dict[str, Any] = known.pop("options")
        return (
            known
            | options
            | {
                "path": self._paths.get(port.name),
                "front": front(self._switch.pointer, port.id),
                "held": port.name in self._holders,
                "attached": port.name in self.folder.attached,
            }
        )

    def _add_ring(self, fields: Fields, descriptors: list[int], holder: object) -> dict[str, Any]:
        name, options, hold = _port(fields)
        where = fields.where = f"{fields.where}: port {name}"
        region_name = fields.text("region")
        channels = {way: _channel(fields.table(way)) for way in ("out", "in")}
        fields.end()
        longest = message_size(self.mtu)
        for way, channel in channels.items():
            if channel.max_message < longest:
                raise NetError(
                    f"{where}: {way}: its messages have at most {channel.max_message} bytes, "
                    f"but a frame of this network takes up to {longest}"
                )
        if not 2 <= len(descriptors) <= 1 + BELLS:
            raise NetError(f"{where}: {len(descriptors)} descriptors came; it takes the region's memory and its bells")
        memory, *bells = descriptors
        size = _memory_size(where, memory)
        for bell in bells:
            _check_bell(where, bell)
        if max(max(channel.data_bell, channel.space_bell) for channel in channels.values()) >= len(bells):
            raise NetError(f"{where}: a channel's bell is not among the {len(bells)} that came")
        region = Region(region_name, memory, bells, size)
        descriptors.clear()  # They are the region's.
        try:
            region.channels = channels
            info = self._switch.add_ring(name, region, out="out", into="in", **options)
        except BaseException:
            region.close()
            raise
        self._regions[name] = region
        return self._added(info, hold, holder)

    def _add_vhost(self, fields: Fields, descriptors: list[int], holder: object) -> dict[str, Any]:
        name, options, hold = _port(fields)
        attached = fields.flag("attached", False)
        _none(fields, descriptors)
        path = str(naming.vhost_path(self.cluster, self.network, name))
        info = self._switch.add_vhost(name, path, **options)
        self._paths[name] = path
        if attached:
            self.folder.attached[name] = {"op": "add_vhost", "name": name, "attached": True, **options}
            self.folder.keep()
        return self._added(info, hold, holder)

    def _add_tap(self, fields: Fields, descriptors: list[int], holder: object) -> dict[str, Any]:
        return self._add_interface(fields, descriptors, holder, self._switch.add_tap)

    def _add_packet(self, fields: Fields, descriptors: list[int], holder: object) -> dict[str, Any]:
        return self._add_interface(fields, descriptors, holder, self._switch.add_packet)

    def _add_interface(
        self, fields: Fields, descriptors: list[int], holder: object, add: Callable[..., PortInfo]
    ) -> dict[str, Any]:
        name, options, hold = _port(fields)
        interface, netns = fields.text("interface"), fields.text_or_none("netns")
        _none(fields, descriptors)
        if netns is None:
            info = add(name, interface, **options)
        else:
            from net.namespaces import inside

            with inside(netns):
                info = add(name, interface, **options)
        return self._added(info, hold, holder)

    def _added(self, info: PortInfo, hold: bool, holder: object) -> dict[str, Any]:
        if hold:
            self._holders[info.name] = holder
        self._captures.refresh(self._numbers())
        return self._describe(info)

    def _remove(self, fields: Fields, descriptors: list[int], holder: object) -> None:
        name = naming.check_port(fields.text("name"))
        _none(fields, descriptors)
        self._take_away(name)

    def _take_away(self, name: str) -> None:
        self._switch.remove(name)
        self._holders.pop(name, None)
        self._paths.pop(name, None)
        if self.folder.attached.pop(name, None) is not None:
            self.folder.keep()
        region = self._regions.pop(name, None)
        if region is not None:
            region.close()
        self._captures.refresh(self._numbers())

    def _numbers(self) -> dict[str, int]:
        return {port.name: port.id for port in self._switch.ports()}

    def _capture(self, fields: Fields, descriptors: list[int], holder: object) -> dict[str, Any]:
        region_name, snap = fields.text("region"), fields.number("snap", 0, U32, 0)
        channel = _channel(fields.table("channel"))
        ports, macs = fields.texts("ports", TERMS), fields.macs("macs", TERMS)
        fields.end()
        numbers = self._numbers()
        for name in ports:
            if name not in numbers:
                raise NetError(f"{fields.where}: there is no port {name!r} (there: {', '.join(numbers) or 'none'})")
        if len(descriptors) != 1:
            raise NetError(f"{fields.where}: {len(descriptors)} descriptors came; it takes the memory of a ring")
        region = Region(region_name, descriptors[0], [], _memory_size(fields.where, descriptors[0]))
        descriptors.clear()
        try:
            region.channels = {"frames": channel}
            self._captures.add(
                region, "frames", holder, ports=ports, macs=macs, snap=snap, numbers=numbers, where=fields.where
            )
        except BaseException:
            region.close()
            raise
        return {"ports": [{"id": port.id, "name": port.name, "kind": port.kind} for port in self._switch.ports()]}

    def _stop(self, fields: Fields, descriptors: list[int], holder: object) -> None:
        _none(fields, descriptors)
        self.stopping = True


def _port(fields: Fields) -> tuple[str, dict[str, Any], bool]:
    """Take what the requests for all kinds of ports have in common: name, options, and whether to hold it."""
    name = naming.check_port(fields.text("name"))
    options = PortOptions(
        mac=fields.mac("mac"),
        uplink=fields.flag("uplink", False),
        isolated=fields.flag("isolated", False),
        rate=fields.number("rate", 0, RATE_LIMIT, 0),
        offloads=fields.flag("offloads", True),
    )
    return name, asdict(options), fields.flag("hold", False)


def _channel(fields: Fields) -> ChannelInfo:
    """Return a ring's place as it was told. Checked: its numbers; whether it lies in the memory is the switch's."""
    fields.text("name")
    if fields.text("kind") != "spsc":
        raise NetError(f"{fields.where}: has to have one sender and one receiver (spsc)")
    offset, span = fields.number("offset", 0, MEMORY_LIMIT), fields.number("span", 0, MEMORY_LIMIT)
    size, message = fields.number("size", 512, MEMORY_LIMIT), fields.number("max_message", 1, U32)
    lanes, flags = fields.number("lanes", 1, 1), fields.number("flags", 0, U32)
    bells = fields.number("data_bell", 0, BELLS - 1), fields.number("space_bell", 0, BELLS - 1)
    fields.end()
    return ChannelInfo(fields.where, "spsc", offset, span, size, message, lanes, flags, *bells)


def _none(fields: Fields, descriptors: list[int]) -> None:
    """Check that nothing is left over of a request."""
    fields.end()
    if descriptors:
        raise NetError(f"{fields.where}: {len(descriptors)} descriptors came with it; it takes none")


def _memory_size(where: str, memory: int) -> int:
    found = os.fstat(memory)
    if not stat.S_ISREG(found.st_mode) or not PAGE <= found.st_size <= MEMORY_LIMIT:
        raise NetError(f"{where}: the first descriptor is no region's memory")
    return found.st_size


def _check_bell(where: str, bell: int) -> None:
    """A bell is rung by the forwarding thread, which must not block."""
    if os.readlink(f"/proc/self/fd/{bell}") != "anon_inode:[eventfd]":
        raise NetError(f"{where}: a descriptor is no bell (eventfd)")
    if not fcntl.fcntl(bell, fcntl.F_GETFL) & os.O_NONBLOCK:
        raise NetError(f"{where}: a bell blocks; make it with EFD_NONBLOCK")
