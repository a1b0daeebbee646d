"""A region as a Linux guest has it: the memory of an ivshmem device, with the same channels as on the host."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from guestlib.linux.device import PAGE, Device
from guestlib.linux.handed import HandedEnd
from shm import layout
from shm._shm import ffi, lib
from shm.claims import End as EndKey
from shm.errors import ShmError
from shm.layout import ChannelInfo, Layout
from shm.region import Region

REGISTERS = 256  # bytes of BAR0
BELLS = 0x10000  # vectors that the Doorbell register can name


class GuestRegion(Region):
    """A region of this guest. Its ends ring by a store to the device, and sleep on its interrupt where there is UIO.

    `ends` are this guest's; None: nobody said, so any. `locks` is where it is kept which process has one. `size` in
    bytes; 0: nobody said, the header does. `uio`: None if the interrupt can't be heard; then waiting is napping.
    Raises ShmError.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        ends: Sequence[HandedEnd] | None,
        locks: Path,
        *,
        size: int = 0,
        readonly: bool,
        uio: Path | None,
    ) -> None:
        self.device = device
        self.uio = uio
        device.enable()
        self._registers: mmap.mmap | None = None
        fd, offset = _open(device, readonly)
        try:
            # The device's memory is a power of two; what lies behind the region's end is nothing.
            whole = min(size or device.memory_size, device.memory_size)
            super().__init__(name, fd, [], whole, readonly=readonly, offset=offset)
            found = self._directory(ends or (), size > 0)
            self._show(found)
            self.size = found.size
            self._ownership = HandedEnds(name, self.channels, _all(found) if ends is None else ends, locks)
            self._bell_device = self._open_registers()
        except (OSError, ShmError) as error:
            with contextlib.suppress(AttributeError):  # It may not be mapped yet.
                self._unmap()
            os.close(fd)
            raise error if isinstance(error, ShmError) else ShmError(f"region {name}: {error}") from None

    def _directory(self, ends: Sequence[HandedEnd], handed: bool) -> Layout:
        """Return where channels and data lie: as hostd said, else as the region's own directory has it."""
        header = ffi.cast("struct shm_region_header *", self._memory)
        if self.size < layout.PAGE or header.magic != lib.SHM_MAGIC:
            return Layout((), 0, self.size, 0)  # A file that is no more than its bytes.
        size = self.size if handed else min(header.size, self.size)
        said = {end.channel: end.info for end in ends if end.info is not None}
        try:
            found = layout.read(self._memory, size, BELLS, f"region {self.name}")
        except ShmError:
            # A peer wrote there. What hostd said stays good; data begin behind its channels.
            if not said:
                raise
            edge = max(info.offset + info.span for info in said.values())
            found = Layout((), edge if edge < size else size, size, 0)
        infos = {info.name: info for info in found.channels} | said
        return Layout(tuple(infos.values()), found.data_offset, size, found.bells)

    def _open_registers(self) -> Any:
        fd = os.open(self.device.registers, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._registers = mmap.mmap(fd, REGISTERS, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        self._pinned = ffi.from_buffer("char[]", self._registers)
        self._paths = [ffi.new("char[]", os.fsencode(path)) for path in (self.uio or "", self.device.config)]
        bells = ffi.new("struct bell_device *")
        bells.registers = ffi.cast("uint32_t *", self._pinned + self.device.registers_offset)
        bells.uio = self._paths[0] if self.uio else ffi.NULL
        bells.config = self._paths[1]
        return bells

    def _open_end(self, end: Any, info: ChannelInfo, lane: int, role: int) -> int:
        config = info.config(lane)
        return int(lib.end_open_device(end, self._memory, self.size, config, role, self._bell_device, self.readonly))

    def _mark(self, channel: str, role: str, lane: int, state: int) -> NoReturn:
        raise ShmError(f"region {self.name}: only the host says which ends are gone")

    def _unmap(self) -> None:
        super()._unmap()
        if self._registers is not None:
            ffi.release(self._pinned)
            self._registers.close()
            self._registers = None


def _all(found: Layout) -> list[HandedEnd]:
    roles = {"barrier": ("join",)}
    return [
        HandedEnd(info.name, "", role, lane, info.lanes, info.flags, None)
        for info in found.channels
        for role in roles.get(info.kind, ("send", "receive"))
        for lane in range(1 if role == "receive" else info.lanes)
    ]


def _open(device: Device, readonly: bool) -> tuple[int, int]:
    """Return a descriptor that maps the device's memory, and at what offset."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
    cached = device.cached_memory()
    if cached is not None:
        # A kernel that is locked down has no /dev/mem for anybody.
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            fd = os.open(cached[0], flags)
            undo.callback(os.close, fd)
            mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ, offset=cached[1]).close()
            undo.pop_all()
            return fd, cached[1]
    try:
        return os.open(device.memory, flags), 0
    except OSError as error:
        reason = "; only root may map a device's memory" if isinstance(error, PermissionError) else ""
        raise ShmError(f"{device.memory}: cannot be opened: {error.strerror}{reason}") from None


class HandedEnds:
    """The ends that hostd gave to this guest, each for one process at a time: a lock on a file says whose it is."""

    def __init__(
        self, region: str, channels: Mapping[str, ChannelInfo], ends: Iterable[HandedEnd], locks: Path
    ) -> None:
        self._region = region
        self._channels = channels
        self._ends = list(ends)
        self._folder = locks
        self._locks: dict[EndKey, int] = {}

    def claim(self, channel: str, role: str, lane: int | None, holder: object) -> int:
        """Take an end; return its lane. Raises ShmError."""
        where = f"region {self._region}: channel {channel}"
        if channel not in self._channels:
            raise ShmError(f"{where} does not exist (there: {', '.join(self._channels) or 'it has none'})")
        ours = [end for end in self._ends if end.channel == channel and end.role == role]
        if lane is not None:
            ours = [end for end in ours if end.lane == lane]
        if not ours:
            given = ", ".join(f"{end.role} (lane {end.lane})" for end in self._ends if end.channel == channel)
            wanted = role if lane is None else f"{role} on lane {lane}"
            raise ShmError(
                f"{where}: cannot {wanted}: this guest may {given or 'nothing'}; its cluster file says so, at channels"
            )
        for end in ours:
            if role == "receive" and self._channels[channel].kind == "broadcast":
                return end.lane  # Any number may listen.
            if self._lock((channel, role, end.lane)):
                return end.lane
        raise ShmError(f"{where}: cannot {role}: another process of this guest does; close it there first")

    def _lock(self, end: EndKey) -> bool:
        if end in self._locks:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._folder / "{}.{}.{}".format(*end), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._locks[end] = fd
        return True

    def release(self, end: EndKey, holder: object) -> bool:
        """Give an end back, for the next process."""
        fd = self._locks.pop(end, None)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def close(self) -> None:
        """Give all of them back."""
        for end in list(self._locks):
            self.release(end, self)
