"""What a cluster file says, checked: plain data without any behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

KINDS = ("spsc", "mpsc", "broadcast", "barrier")
ROLES = ("send", "receive", "join")


@dataclass(frozen=True)
class Region:
    """Named shared memory.

    Either `file` is given (raw: the file's own bytes, no header), or hostd makes it on `backing`: "shm",
    "hugetlb", a path, or, if `private`, "memfd". `size` is the data area behind the channels, in bytes.
    """

    name: str
    size: int
    backing: str | Path
    file: Path | None
    private: bool = False
    """one guest's port's and a switch's: nobody joins it by name"""
    label: str = ""
    """what its guest knows it by, if not by `name`"""

    @property
    def raw(self) -> bool:
        return self.file is not None


@dataclass(frozen=True)
class Channel:
    """A ring or barrier in a region; `size` and `max_message` in bytes (None: the default)."""

    name: str
    region: str
    kind: str
    size: int
    max_message: int | None
    lanes: int | None
    """senders of an mpsc or parties of a barrier, if more than the guests that use it"""
    label: str = ""
    """what its guests know it by, if not by `name`"""
    inner: str = ""
    """what it is called in its region, if not `name`"""


@dataclass(frozen=True)
class Uplink:
    """What leads out of a network: a tap interface that the switch makes, or (`packet`) an interface that is there."""

    kind: str
    """"tap" or "packet"; as the switch's ports"""
    interface: str
    address: IPv4Address | None
    """the host's own in the network, on the tap"""
    netns: str | None
    """name of the network namespace that the interface is in; None: the host's own"""


@dataclass(frozen=True)
class Network:
    """An Ethernet network with a switch of its own; without a `subnet` its guests have no addresses."""

    name: str
    subnet: IPv4Network | None
    mtu: int
    uplink: Uplink | None
    gateway: IPv4Address | None
    """where guests send what is not for the subnet"""
    nat: bool


@dataclass(frozen=True)
class Port:
    """What a `[guest.NAME]` says of its port at one network; with `count`, `address` is the first guest's."""

    network: str
    mac: bytes | None
    address: IPv4Address | None
    isolated: bool
    """exchanges frames with uplinks only"""
    rate: int
    """bytes a second into the switch; 0: as it likes"""
    fixed: bool
    """sends from its own address only"""
    queues: int
    """pairs of virtqueues of a Linux guest's device"""
    size: int
    """bytes of each of a unikernel's two rings"""


@dataclass(frozen=True)
class Slot:
    """An extra row of a guest's slot table."""

    name: str
    gpa: int
    size: int
    backing: str
    path: Path | None
    offset: int
    access: str


@dataclass(frozen=True)
class Framebuffer:
    """A picture in a guest's memory: rows of pixels, each of 4 bytes: blue, green, red, and one that means nothing."""

    width: int
    height: int
    stride: int
    """bytes from one row to the next"""
    device: Path | None
    """what is mapped; None: memory of the guest's own"""
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the picture."""
        return self.stride * self.height


@dataclass(frozen=True)
class Disk:
    """A file that a Linux guest has as a disk.

    `device` is "blk" (virtio-blk) or "pmem" (its pages are the guest's). `access` is "ro", "private" (the guest's
    writes stay its own and end with it) or "shared" (they reach the file).
    """

    file: str
    """an absolute path, or an image's name"""
    device: str
    access: str


@dataclass(frozen=True)
class Root:
    """The root file system of a Linux guest; with `overlay`, its writes go to memory on top of the disk."""

    disk: Disk
    overlay: bool
    dax: bool


@dataclass(frozen=True)
class Linux:
    """What makes a guest a Linux guest. `kernel` and `initrd` are absolute paths or names of images."""

    kernel: str
    initrd: str | None
    """None: hostd's own for that kernel"""
    root: Root | None
    """None: the guest stays in its initramfs"""
    cmdline: str
    """appended to hostd's own"""
    vcpus: int
    command: tuple[str, ...]
    files: Mapping[str, Path]
    """files of the host by their path in the guest"""
    disks: tuple[Disk, ...]
    ports: tuple[str, ...]
    """names of virtio-console ports, each a Unix socket on the host"""
    balloon: bool
    reboot: str
    """what a reboot does: "end" ends the guest, "restart" starts it anew"""
    init: str | None
    """a program of the root that is process 1, instead of hostd's agent"""


@dataclass(frozen=True)
class Guest:
    """One `[guest.NAME]` of the file: one guest, or `count` of them.

    Exactly one of `sources`, `image` and `linux` is given, or `template` and, if that is of a Linux guest, `linux`.
    """

    name: str
    sources: tuple[Path, ...]
    image: Path | None
    memory: int
    args: tuple[str, ...]
    env: Mapping[str, str]
    count: int | None
    after: tuple[str, ...]
    restart: str
    cpus: tuple[int, ...]
    regions: Mapping[str, str]
    channels: Mapping[str, str]
    options: Mapping[str, bool | str | None]
    slots: tuple[Slot, ...]
    log_limit: int
    linux: Linux | None = None
    ports: Mapping[str, Port] = field(default_factory=dict)
    """its ports by network, in the order of its interfaces"""
    framebuffer: Framebuffer | None = None
    ceiling: int | None = None
    """bytes of its memory that the host keeps in memory, the rest is paged out"""
    limit: int | None = None
    """bytes of the host's memory that its process may take before it is killed"""
    template: str | None = None
    """the name of what it goes on from"""


@dataclass(frozen=True)
class Cluster:
    """A whole cluster file. `path` is the file's; paths in it are absolute, resolved against its folder."""

    name: str
    path: Path
    regions: Mapping[str, Region]
    channels: Mapping[str, Channel]
    guests: Mapping[str, Guest]
    tables: Mapping[str, Any]
    """the file's tables as they were read, overrides applied"""
    networks: Mapping[str, Network] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    overrides: tuple[str, ...] = field(default=())
    """the --set arguments it was read with"""
