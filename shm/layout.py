"""What lies where in a region: its header, the directory of its channels, the channels, the data (region.h)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shm._shm import ffi, lib
from shm.errors import ShmError

KINDS = ("spsc", "mpsc", "broadcast", "barrier")
ROLES = ("send", "receive", "join")
PAGE = lib.SHM_PAGE
HEADER_NAME = 127  # bytes of the name in the header, without the zero
U32 = 0xFFFFFFFF


def round_up(value: int, unit: int) -> int:
    """Return `value` rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit


@dataclass(frozen=True)
class ChannelSpec:
    """A channel to make. `size`: its ring's capacity in bytes (each sender's, in an mpsc), made a power of two.

    `max_message` bytes: what the ring can carry, unless told. `lanes`: senders of an mpsc, parties of a barrier.
    `always_ring`: readers of this broadcast map it read-only and can't say that they sleep; every message rings.
    `fenced`: an end is where no host's barrier reaches (in a Linux guest); whoever rings fences first.
    """

    name: str
    kind: str = "spsc"
    size: int = 65536
    max_message: int | None = None
    lanes: int = 1
    always_ring: bool = False
    fenced: bool = False


@dataclass(frozen=True)
class ChannelInfo:
    """Where a channel lies and how it is used: all an end needs, in numbers; bells by number in `Region.bells`."""

    name: str
    kind: str
    offset: int
    span: int
    size: int
    max_message: int
    lanes: int
    flags: int
    data_bell: int
    space_bell: int

    def config(self, lane: int = 0) -> Any:
        """Return it as a struct shm_config for one end."""
        return ffi.new(
            "struct shm_config *",
            {
                "kind": KINDS.index(self.kind),
                "flags": self.flags,
                "offset": self.offset,
                "size": self.size,
                "max_message": self.max_message,
                "lanes": self.lanes,
                "lane": lane,
                "data_bell": self.data_bell,
                "space_bell": self.space_bell,
            },
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as msgpack can carry it."""
        return asdict(self)


@dataclass(frozen=True)
class Layout:
    """A region's parts; sizes and offsets in bytes."""

    channels: tuple[ChannelInfo, ...]
    data_offset: int
    size: int
    bells: int


def _channel(spec: ChannelSpec, offset: int, bell: int, fenced: bool) -> ChannelInfo:
    where = f"channel {spec.name}"
    if not spec.name or len(spec.name.encode()) >= lib.SHM_NAME or "\0" in spec.name:
        raise ShmError(f"channel name {spec.name!r} is wrong: use 1 to {lib.SHM_NAME - 1} bytes")
    if spec.kind not in KINDS:
        raise ShmError(f"{where}: kind {spec.kind!r} is not one of {', '.join(KINDS)}")
    size, max_message = 0, 0
    if spec.kind != "barrier":
        size = max(lib.RING_MIN_SIZE, 1 << (spec.size - 1).bit_length()) if spec.size > 0 else 0
        if not 0 < size <= lib.RING_MAX_SIZE:
            raise ShmError(f"{where}: size {spec.size} is not between 1 and {lib.RING_MAX_SIZE} bytes")
        limit = lib.end_limit(KINDS.index(spec.kind), size)
        max_message = limit if spec.max_message is None else spec.max_message
        if not 0 < max_message <= limit:
            raise ShmError(
                f"{where}: max_message {max_message} is not between 1 and {limit} bytes, "
                f"which is what a ring of {size} bytes can carry; make size larger"
            )
    most = {"mpsc": lib.MPSC_MAX_LANES, "barrier": lib.BARRIER_MAX_PARTIES}.get(spec.kind, 1)
    if not 1 <= spec.lanes <= most:
        raise ShmError(f"{where}: lanes {spec.lanes} is not between 1 and {most}, for kind {spec.kind!r}")
    flags = (lib.SHM_FENCED if fenced or spec.fenced else 0) | (lib.SHM_ALWAYS_RING if spec.always_ring else 0)
    # Only rings that can be full have somebody waiting for room.
    space = bell + 1 if spec.kind in ("spsc", "mpsc") else bell
    info = ChannelInfo(spec.name, spec.kind, offset, 0, size, max_message, spec.lanes, flags, bell, space)
    span = round_up(lib.end_bytes(info.config()), PAGE)
    return ChannelInfo(**{**info.as_dict(), "span": span})


def lay_out(
    channels: Iterable[ChannelSpec],
    data_size: int,
    *,
    page: int = PAGE,
    fenced: bool = False,
    spare_bells: int = 0,
) -> Layout:
    """Return the layout of a region with `data_size` bytes behind its channels. Raises ShmError."""
    specs = list(channels)
    if data_size < 0:
        raise ShmError(f"a region of {data_size} bytes is none; give size 0 or more")
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ShmError(f"channel {name}: there are two of that name in the region; rename one")
    entry = ffi.sizeof("struct shm_channel_entry")
    offset, bell = round_up(lib.SHM_DIRECTORY + len(specs) * entry, PAGE), 0
    infos = []
    for spec in specs:
        infos.append(_channel(spec, offset, bell, fenced))
        offset += infos[-1].span
        bell = infos[-1].space_bell + 1
    return Layout(tuple(infos), offset, round_up(offset + data_size, page), bell + spare_bells)


def write(memory: Any, name: str, layout: Layout) -> None:
    """Write header and directory to the new region mapped at `memory`; the magic number last."""
    header = ffi.cast("struct shm_region_header *", memory)
    entries = ffi.cast("struct shm_channel_entry *", memory + lib.SHM_DIRECTORY)
    header.version, header.channels = lib.SHM_VERSION, len(layout.channels)
    header.size, header.data_offset, header.bells = layout.size, layout.data_offset, layout.bells
    header.generation = int.from_bytes(os.urandom(8), "little")
    header.name = name.encode()[:HEADER_NAME]
    for number, info in enumerate(layout.channels):
        fields = info.as_dict() | {"name": info.name.encode(), "kind": KINDS.index(info.kind)}
        for field, value in fields.items():
            setattr(entries[number], field, value)
    header.magic = lib.SHM_MAGIC


def read(memory: Any, size: int, bells: int, where: str) -> Layout:
    """Read the directory of the region mapped at `memory`, which peers may have written to. Raises ShmError.

    Checked: every offset and size against the region's `size`, that no two channels overlap, bells against `bells`.
    """
    if size < PAGE:
        raise ShmError(f"{where}: {size} bytes are no region")
    header = ffi.cast("struct shm_region_header *", memory)
    entry, field = ffi.new("struct shm_channel_entry *"), ffi.new("char **")
    count, data_offset = header.channels, header.data_offset
    if count > (size - lib.SHM_DIRECTORY) // ffi.sizeof("struct shm_channel_entry"):
        raise ShmError(f"{where}: field channels of its header is spoiled")
    infos = []
    for number in range(count):
        if lib.shm_directory_entry(memory, size, number, entry, field):
            raise ShmError(f"{where}: field {ffi.string(field[0]).decode()} of its header or directory is spoiled")
        infos.append(_entry(entry, bells, f"{where}: channel {number}"))
    _check_apart(infos, data_offset, size, where)
    return Layout(tuple(infos), data_offset, size, bells)


def _entry(entry: Any, bells: int, where: str) -> ChannelInfo:
    if entry.kind >= len(KINDS):
        raise ShmError(f"{where}: field kind of the directory is spoiled")
    info = ChannelInfo(
        ffi.string(entry.name).decode(errors="replace"),
        KINDS[entry.kind],
        entry.offset,
        entry.span,
        entry.size,
        entry.max_message,
        entry.lanes,
        entry.flags,
        entry.data_bell,
        entry.space_bell,
    )
    config = info.config()
    if not 0 < lib.end_bytes(config) <= info.span:
        raise ShmError(f"{where}: field size, lanes or span of the directory is spoiled")
    if info.kind != "barrier" and info.max_message > lib.end_limit(config.kind, info.size):
        raise ShmError(f"{where}: field max_message of the directory is spoiled")
    if max(info.data_bell, info.space_bell) >= bells:
        raise ShmError(f"{where}: field data_bell or space_bell of the directory is spoiled")
    return info


def _check_apart(infos: Sequence[ChannelInfo], data_offset: int, size: int, where: str) -> None:
    edges = [(0, lib.SHM_DIRECTORY + len(infos) * ffi.sizeof("struct shm_channel_entry"))]
    edges += sorted((info.offset, info.offset + info.span) for info in infos)
    edges.append((data_offset, size))
    for (_, end), (start, _) in itertools.pairwise(edges):
        if start < end:
            raise ShmError(f"{where}: field offset, span or data_offset of its directory is spoiled")
    if data_offset > size:
        raise ShmError(f"{where}: field data_offset of its header is spoiled")
    if len({info.name for info in infos}) < len(infos):
        raise ShmError(f"{where}: field name of its directory is spoiled")
