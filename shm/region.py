"""Regions: named memory that guests, the host and host processes share, with channels inside."""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from shm import layout, memory, naming
from shm._shm import ffi, lib
from shm.barrier import Barrier
from shm.claims import Claims
from shm.claims import End as EndKey
from shm.end import End
from shm.errors import ShmError
from shm.layout import ROLES, ChannelInfo, ChannelSpec, Layout
from shm.receiver import Receiver
from shm.sender import Sender

if TYPE_CHECKING:
    from shm.broker import Broker

AnyEnd = TypeVar("AnyEnd", bound=End)
STATES = {lib.SHM_NEVER: "never", lib.SHM_ATTACHED: "attached", lib.SHM_CLOSED: "closed", lib.SHM_GONE: "gone"}


class Ownership(Protocol):
    """Who says which ends this process may have: the region's own claims, or its owner's broker."""

    def claim(self, channel: str, role: str, lane: int | None, holder: object) -> int:
        """Give an end; return its lane."""

    def release(self, end: EndKey, holder: object) -> bool:
        """Take it back."""


def _bell() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class Region:
    """Shared memory with a name. `create` makes one, `open` joins another process's, `adopt` takes one over.

    `fd` and `bells` (eventfds) are the region's; `size` in bytes is all of it, `data` the part without structure.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        bells: Sequence[int],
        size: int,
        *,
        readonly: bool = False,
        backing: memory.Backing = "shm",
        offset: int = 0,
    ) -> None:
        self.name = name
        self.fd = fd
        self.size = size
        self.bells = list(bells)
        self.readonly = readonly
        self.backing = backing
        self.channels: Mapping[str, ChannelInfo] = {}
        self.data = memoryview(b"")
        self.claims: Claims | None = None
        self._owner: int | None = None
        self._ownership: Ownership | None = None
        self._broker: Broker | None = None
        self._ends: set[End] = set()
        self._closed = False
        lib.end_register()
        try:
            prot = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, prot, offset=offset)
        except (OSError, ValueError) as error:
            raise ShmError(f"region {name}: {size} bytes can't be mapped: {error}") from None
        self._memory = ffi.from_buffer("char[]", self._map)

    # --- making and joining ------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str,
        *,
        size: int = 0,
        channels: Iterable[ChannelSpec] = (),
        backing: memory.Backing = "shm",
        serve: bool = True,
        spare_bells: int = 0,
    ) -> Region:
        """Make a region with `size` bytes of data behind its channels; closing it removes it.

        `backing`: "shm" (POSIX shared memory), "hugetlb" (2 MiB pages), a file's path, or "memfd" (no name; handed on
        as descriptors). `serve`: let other processes join it by name, from a thread. `spare_bells`: so many more bells,
        behind the channels', for the owner's use.
        Header and channels are reserved now, data as it is touched. Raises ShmError.
        """
        if serve or backing != "memfd":
            naming.flat_name(name)
        fenced = lib.end_register() != 0  # No heavy barrier on this kernel: whoever rings has to fence.
        page = memory.page_size(backing)
        parts = layout.lay_out(channels, size, page=page, fenced=fenced, spare_bells=spare_bells)
        fd = memory.make(name, backing, parts.size, parts.data_offset)
        bells: list[int] = []
        try:
            bells += (_bell() for _ in range(parts.bells))
            region = cls(name, fd, bells, parts.size, backing=backing)
        except (OSError, ShmError) as error:
            memory.remove(name, backing)
            for descriptor in [fd, *bells]:
                os.close(descriptor)
            raise ShmError(f"region {name}: {error}") from None
        layout.write(region._memory, name, parts)
        region._own(parts)
        if serve:
            from shm.broker import default

            try:
                default().add(region)
            except BaseException:
                region.close()
                raise
        return region

    @classmethod
    def adopt(
        cls,
        name: str,
        fd: int,
        bells: Sequence[int],
        channels: Iterable[ChannelSpec] | None = None,
        *,
        backing: memory.Backing = "shm",
    ) -> Region:
        """Take over the region of a process that died, given its memory and bells (by number), which become this one's.

        `channels`: as it was made; if None, the region's own directory is believed, as far as it makes sense, though
        its peers may have written there. Raises ShmError.
        """
        fd = memory.take(name, fd)
        size = os.fstat(fd).st_size
        region = cls(name, fd, bells, size, backing=backing)
        try:
            found = layout.read(region._memory, size, len(region.bells), f"region {name}")
            if channels is not None:
                made = layout.lay_out(channels, 0, page=memory.page_size(backing))
                found = Layout(made.channels, made.data_offset, size, len(region.bells))
        except ShmError:
            region._unmap()
            raise
        region._own(found)
        return region

    @classmethod
    def open(cls, name: str, *, readonly: bool = False) -> Region:
        """Join the region `name` of another process of this user, by name. Raises ShmError."""
        from shm.client import Client

        client = Client(name, readonly=readonly)
        try:
            region = cls(name, client.fd, client.bells, client.size, readonly=readonly)
        except ShmError:
            client.close()
            raise
        region._ownership = client
        region._show(client.layout)
        return region

    def _own(self, parts: Layout) -> None:
        self._show(parts)
        self._ownership = self.claims = Claims(self.name, self.channels)
        self._owner = os.getpid()
        atexit.register(self.close)

    def _show(self, parts: Layout) -> None:
        self.channels = {info.name: info for info in parts.channels}
        self.data = memoryview(self._map)[parts.data_offset :]

    # --- channels ----------------------------------------------------------------------------------------------

    def sender(self, channel: str, lane: int | None = None) -> Sender:
        """Become a sender; of an mpsc, its `lane`-th or the first that is free. Raises ShmError, RingError."""
        return self._attach(Sender, channel, lane)

    def receiver(self, channel: str) -> Receiver:
        """Become the receiver, or one of a broadcast's. Raises ShmError."""
        return self._attach(Receiver, channel, None)

    def barrier(self, channel: str, lane: int | None = None) -> Barrier:
        """Become a party of a barrier, the `lane`-th or the first that is free. Raises ShmError."""
        return self._attach(Barrier, channel, lane)

    def _attach(self, kind: type[AnyEnd], channel: str, lane: int | None) -> AnyEnd:
        if self._closed or self._ownership is None:
            raise ShmError(f"region {self.name} is closed")
        role = kind.role
        if self.readonly and (self._info(channel).kind != "broadcast" or role != "receive"):
            raise ShmError(f"region {self.name} was opened read-only: it takes readonly=False to {role} on {channel}")
        given = self._ownership.claim(channel, role, lane, self)
        try:
            end = kind(self, self.channels[channel], given)
        except BaseException:
            self._ownership.release((channel, role, given), self)
            raise
        self._ends.add(end)
        return end

    def _open_end(self, end: Any, info: ChannelInfo, lane: int, role: int) -> int:
        """Open the C side of an end; return its result."""
        bells = self.bells[info.data_bell], self.bells[info.space_bell]
        config = info.config(lane)
        return int(lib.end_open(end, self._memory, self.size, config, role, *bells, self.readonly))

    # --- peers -------------------------------------------------------------------------------------------------

    def mark_gone(self, channel: str, *, role: str, lane: int = 0) -> None:
        """Tell the peers that the holder of an end died, unless it had closed it. Raises ShmError."""
        self._mark(channel, role, lane, lib.SHM_GONE)

    def mark_fresh(self, channel: str, *, role: str, lane: int = 0) -> None:
        """Make an end as if nobody had had it yet: its next holder is about to start. Raises ShmError."""
        self._mark(channel, role, lane, lib.SHM_NEVER)

    def clear(self, channel: str) -> None:
        """Make a channel as it was at first: empty, no end used yet. Nobody may have one open. Raises ShmError."""
        info = self._info(channel)
        ffi.memmove(self._memory + info.offset, bytes(info.span), info.span)

    def state(self, channel: str, *, role: str, lane: int = 0) -> str:
        """Return the state of an end: "never", "attached", "closed" or "gone", or "?" for a spoiled one."""
        info = self._info(channel)
        found = lib.end_state(self._memory, self.size, info.config(lane), ROLES.index(role))
        return STATES.get(found, "?")

    def _mark(self, channel: str, role: str, lane: int, state: int) -> None:
        info = self._info(channel)
        if role not in ROLES:
            raise ShmError(f"region {self.name}: channel {channel}: {role!r} is no role")
        if lib.end_mark(self._memory, self.size, info.config(lane), ROLES.index(role), state):
            raise ShmError(f"region {self.name}: channel {channel} lies outside of it")
        if state == lib.SHM_GONE:
            for bell in {info.data_bell, info.space_bell}:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self.bells[bell], 1)

    def _info(self, channel: str) -> ChannelInfo:
        if self._closed:
            raise ShmError(f"region {self.name} is closed")
        try:
            return self.channels[channel]
        except KeyError:
            there = ", ".join(self.channels) or "it has none"
            raise ShmError(f"region {self.name}: channel {channel} does not exist (there: {there})") from None

    def _let_go(self, end: End) -> None:
        self._ends.discard(end)
        if self._ownership is not None:
            self._ownership.release((end.info.name, end.role, end.lane), self)

    # --- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the ends this process has, and the region; its owner's closing removes it for those who come later.

        Views of `data` that are still around stay usable. A second time does nothing.
        """
        if self._closed:
            return
        for end in list(self._ends):
            end.close()
        if self._owner == os.getpid() and self._broker is not None:
            self._broker.remove(self)
        self._closed = True
        if self._owner == os.getpid():  # Not in a fork: the region is its parent's.
            memory.remove(self.name, self.backing)
        if self._owner is not None:
            atexit.unregister(self.close)
        close = getattr(self._ownership, "close", None)
        if close is not None:
            close()
        self._unmap()
        for descriptor in [self.fd, *self.bells]:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.bells = []

    def _unmap(self) -> None:
        ffi.release(self._memory)
        with contextlib.suppress(BufferError):
            self.data.release()
        with contextlib.suppress(BufferError):  # Somebody still has a view: it goes with the last one.
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Region {self.name}, {self.size} bytes, {len(self.channels)} channels{', closed' * self._closed}>"
