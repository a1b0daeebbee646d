"""The cluster file's keys, as pydantic models: types, defaults, ranges, unknown keys."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from hostd.cluster.sizes import parse_size

PAGE = 4096


def _size(value: object) -> int:
    return parse_size(value)


def _pages(value: object) -> int:
    size = parse_size(value)
    if size % PAGE:
        raise ValueError(f"{size:#x} is not aligned; give a multiple of the page size, {PAGE}")
    return size


def _address(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 52:
        raise ValueError(f"{value!r} is no guest address; give an integer such as 0x40000000")
    if value % PAGE:
        raise ValueError(f"{value:#x} is not aligned; give a multiple of the page size, {PAGE}")
    return value


def _ipv4(value: object) -> IPv4Address:
    try:
        return IPv4Address(value if isinstance(value, str) else "")
    except AddressValueError:
        raise ValueError(f'{value!r} is no IPv4 address; write one such as "10.7.0.5"') from None


def _subnet(value: object) -> IPv4Network:
    text = value if isinstance(value, str) else ""
    try:
        loose = IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError(f'{value!r} is no IPv4 subnet; write one such as "10.7.0.0/24"') from None
    if "/" not in text:
        raise ValueError(f'{value!r} says no size; write "{text}/24", for example')
    if IPv4Address(text.partition("/")[0]) != loose.network_address:
        raise ValueError(f'{value!r} is an address in a subnet; the subnet is "{loose}"')
    return loose


def _mac(value: object) -> bytes:
    text = value if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError(f'{value!r} is no MAC address; write six bytes such as "02:00:00:00:00:01"')
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise ValueError(
            f"{value!r} is {'a group' if mac[0] & 1 else 'nobody'}'s address; a guest needs one of its own"
        )
    return mac


def _uplink(value: object) -> object:
    if value == "none":
        return None
    if isinstance(value, str):
        raise ValueError(f'{value!r} is no uplink; use "none", {{ tap = "NAME" }} or {{ interface = "NAME" }}')
    return value


def _list(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


Size = Annotated[int, BeforeValidator(_size)]
Pages = Annotated[int, BeforeValidator(_pages)]
Address = Annotated[int, BeforeValidator(_address)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)]
# No zero byte: these become C strings.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[^\x00=]+$")]
GuestPath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4000)]
Texts = Annotated[list[Text], BeforeValidator(_list)]
Cpu = Annotated[int, Field(ge=0, lt=4096)]
Ipv4 = Annotated[IPv4Address, BeforeValidator(_ipv4)]
Subnet = Annotated[IPv4Network, BeforeValidator(_subnet)]
Mac = Annotated[bytes, BeforeValidator(_mac)]
# The kernel's limit, IFNAMSIZ, and a name that can be part of "net.NAME.out" (GUEST_NAME_SIZE).
Interface = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20/:]+$", max_length=15)]
NetworkName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=32)]


class Table(BaseModel):
    """A table of the file: unknown keys are errors, and a number is no text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClusterTable(Table):
    """[cluster]"""

    name: Name | None = None


class FileBacking(Table):
    """backing = {file = "PATH"}"""

    file: Text


class RegionTable(Table):
    """[region.NAME]"""

    size: Size | None = None
    backing: Literal["shm", "hugetlb"] | FileBacking = "shm"
    file: Text | None = None


class ChannelTable(Table):
    """[channel.NAME]"""

    region: str
    kind: Literal["spsc", "mpsc", "broadcast", "barrier"] = "spsc"
    size: Size = 64 << 10
    max_message: Size | None = None
    lanes: Annotated[int, Field(ge=1, le=4096)] | None = None


class UplinkTable(Table):
    """uplink = { tap = "NAME" } or { interface = "NAME" }"""

    tap: Interface | None = None
    interface: Interface | None = None
    address: Ipv4 | None = None
    netns: Text | None = None


class NetworkTable(Table):
    """[network.NAME]"""

    subnet: Subnet | None = None
    mtu: Annotated[int, Field(ge=68, le=65535)] = 1500
    uplink: Annotated[UplinkTable | None, BeforeValidator(_uplink)] = None
    gateway: Ipv4 | None = None
    nat: bool = False


class PortTable(Table):
    """[guest.NAME.network.NETWORK]"""

    mac: Mac | None = None
    address: Ipv4 | None = None
    isolated: bool = False
    rate: Annotated[Size, Field(le=1 << 40)] | None = None
    fixed: bool = True
    queues: Annotated[int, Field(ge=1, le=8)] = 1
    size: Size | None = None


class SlotTable(Table):
    """[[guest.NAME.slot]]"""

    name: Name | None = None
    gpa: Address
    size: Pages
    backing: Literal["file", "device", "anonymous", "hugetlb"]
    path: Text | None = None
    offset: Address = 0
    access: Literal["rw", "ro"] = "rw"


class FramebufferTable(Table):
    """[guest.NAME.framebuffer]"""

    width: Annotated[int, Field(ge=64, le=8192)] = 1024
    height: Annotated[int, Field(ge=64, le=8192)] = 768
    stride: Annotated[int, Field(multiple_of=4, le=65532)] | None = None
    device: Text | None = None
    offset: Address = 0


class DiskTable(Table):
    """[[guest.NAME.disk]]"""

    file: Text
    device: Literal["blk", "pmem"] = "blk"
    access: Literal["ro", "private", "shared"] = "private"


class RootTable(Table):
    """[guest.NAME.root], or root = "IMAGE" """

    file: Text
    device: Literal["blk", "pmem"] = "pmem"
    access: Literal["ro", "private", "shared"] = "ro"
    overlay: bool | None = None
    dax: bool = True


def _root(value: object) -> object:
    return {"file": value} if isinstance(value, str) else value


class GuestTable(Table):
    """[guest.NAME]"""

    program: Texts | None = None
    image: Text | None = None
    template: Name | None = None
    memory: Pages | None = None
    args: list[Text] = []
    env: dict[Variable, Text] = {}
    count: Annotated[int, Field(ge=1, le=10000)] | None = None
    after: Annotated[list[str], BeforeValidator(_list)] = []
    restart: Literal["no", "on-failure", "always"] = "no"
    cpu: Annotated[list[Cpu], BeforeValidator(_list)] = []
    vcpus: Annotated[int, Field(ge=1, le=8)] = 1
    regions: dict[str, Literal["rw", "ro"]] = {}
    channels: dict[str, Literal["send", "receive", "join"]] = {}
    networks: Annotated[list[str], BeforeValidator(_list)] = []
    network: dict[str, PortTable] = {}
    lock: bool = False
    prefault: bool = False
    mergeable: bool = False
    copied: bool = False
    thp: bool | None = None
    hugetlb: bool = False
    paged: Text | None = None
    overcommit: bool = True
    ceiling: Size | None = None
    limit: Size | None = None
    slot: list[SlotTable] = []
    framebuffer: FramebufferTable | None = None
    log_limit: Size = 16 << 20
    kernel: Text | None = None
    initrd: Text | None = None
    root: Annotated[RootTable | None, BeforeValidator(_root)] = None
    cmdline: Text = ""
    command: Texts = []
    files: dict[GuestPath, Text] = {}
    disk: list[DiskTable] = []
    ports: list[Name] = []
    balloon: bool = True
    reboot: Literal["end", "restart"] = "end"
    init: GuestPath | None = None


LINUX_KEYS = ("initrd", "root", "cmdline", "command", "files", "disk", "ports", "balloon", "reboot", "init", "vcpus")
"""keys that only a guest with a `kernel` may have"""
UNIKERNEL_KEYS = ("program", "image", "args", "slot")
"""keys that a guest with a `kernel` may not have"""
FROZEN_KEYS = ("memory", "args", "env", "slot", "framebuffer", "hugetlb", "copied", "kernel", *LINUX_KEYS)
"""keys that a guest with a `template` has from there"""


class BenchTable(Table):
    """[bench]"""

    baselines: list[str] = []


class CheckTable(Table):
    """[check]"""

    command: Annotated[list[Text], Field(min_length=1)]


class FileTable(Table):
    """The whole file."""

    cluster: ClusterTable = ClusterTable()
    region: dict[Name, RegionTable] = {}
    channel: dict[Name, ChannelTable] = {}
    network: dict[NetworkName, NetworkTable] = {}
    guest: dict[Name, GuestTable] = {}
    bench: BenchTable = BenchTable()
    check: CheckTable | None = None


def known_keys(path: list[str]) -> list[str]:
    """Return the keys that the table at `path` may have, to suggest one for a key it may not."""
    tables: dict[str, Any] = {
        "cluster": ClusterTable,
        "region": RegionTable,
        "channel": ChannelTable,
        "network": NetworkTable,
        "guest": GuestTable,
        "bench": BenchTable,
        "check": CheckTable,
    }
    if not path:
        return list(tables)
    inner: dict[tuple[str, str], Any] = {
        ("guest", "slot"): SlotTable,
        ("guest", "disk"): DiskTable,
        ("guest", "framebuffer"): FramebufferTable,
        ("guest", "root"): RootTable,
        ("guest", "network"): PortTable,
        ("network", "uplink"): UplinkTable,
    }
    table = inner.get((path[0], path[2])) if len(path) > 2 else tables.get(path[0])
    return list(table.model_fields) if table is not None else []
