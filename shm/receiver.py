"""The receiving end of a channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import TYPE_CHECKING, Any

from shm._shm import ffi, lib
from shm.end import FOREVER, End, limit_ns
from shm.errors import RingError
from shm.layout import ChannelInfo

if TYPE_CHECKING:
    from shm.region import Region

_receive = lib.end_receive
_new = ffi.new_allocator(should_clear_after_alloc=False)  # A large buffer takes no memory before it is used.
MANY = 1 << 16  # bytes of several messages at a time: they should still be in the cache when they are taken apart
MOST = 4096  # messages at a time
TOGETHER = 32  # messages of one size that are unpacked at a time


class Receiver(End):
    """Receives messages. `timeout` in seconds (None: no limit, 0: not at all).

    Raises ChannelTimeout when it passes; ChannelClosed or PeerGone when the sender ended and all it sent was received;
    RingError when a peer spoiled the ring (of an mpsc: its lane, which is told once; the others go on).
    """

    role = "receive"

    def __init__(self, region: Region, info: ChannelInfo, lane: int) -> None:
        super().__init__(region, info, lane)
        self._size = info.max_message
        self._buffer = _new("char[]", self._size)
        self._view = ffi.buffer(self._buffer)
        self._many: Any = None
        self._together: Struct | None = None

    def recv(self, timeout: float | None = None) -> bytes:
        """Receive the next message."""
        timeout_ns = FOREVER if timeout is None else limit_ns(timeout)
        size = _receive(self._end, self._buffer, self._size, timeout_ns)
        if size < 0:
            size = self._finish(size, lambda left: _receive(self._end, self._buffer, self._size, left), timeout_ns)
        return self._view[:size]  # type: ignore[no-any-return]

    def recv_into(self, buffer: Any, timeout: float | None = None) -> int:
        """Receive the next message into a writable buffer and return its size.

        Raises MessageTooLong if it doesn't fit: it stays in the ring (a broadcast's is skipped).
        """
        into = ffi.from_buffer("char[]", buffer, require_writable=True)
        timeout_ns = limit_ns(timeout)
        size = _receive(self._end, into, len(into), timeout_ns)
        return self._finish(size, lambda left: _receive(self._end, into, len(into), left), timeout_ns)

    def recv_many(self, count: int = 1024, timeout: float | None = None) -> list[bytes]:
        """Wait for a message and receive it with what else is there, up to `count`, or MANY bytes.

        The time limit is the first's; nothing is waited for behind it. What is wrong behind it is the next call's to
        raise.
        """
        if self._many is None:
            # One more of the longest always fits, so that a broadcast's need not be skipped.
            self._many = _new("char[]", self._size + MANY), ffi.new("uint32_t[]", MOST)
        buffer, sizes = self._many
        count = max(0, min(count, MOST))
        timeout_ns = limit_ns(timeout)

        def call(left: int) -> int:
            return lib.end_receive_many(self._end, buffer, len(buffer), MANY, sizes, count, left)

        got = self._finish(call(timeout_ns), call, timeout_ns)
        lengths = ffi.unpack(sizes, got)
        view = ffi.buffer(buffer, sum(lengths))
        if got > 1 and lengths.count(lengths[0]) == got:
            return self._equal(view, lengths[0], got)
        at, messages = 0, []
        for size in lengths:
            messages.append(view[at : at + size])
            at += size
        return messages

    def _equal(self, view: Any, size: int, count: int) -> list[bytes]:
        """Return the `count` messages of `size` bytes in `view`: unpacked together, which a loop is slower than."""
        if self._together is None or self._together.size != size * TOGETHER:
            self._together = Struct(f"{size}s" * TOGETHER)
        messages: list[bytes] = []
        for first in range(0, count - TOGETHER + 1, TOGETHER):
            messages += self._together.unpack_from(view, first * size)
        messages += [view[number * size : (number + 1) * size] for number in range(len(messages), count)]
        return messages

    @contextmanager
    def peek(self, timeout: float | None = None) -> Iterator[memoryview]:
        """Give the next message in the ring itself; it is taken at the end of the block, unless an exception comes.

        Not for a broadcast. The sender can still change the bytes: copy what must not change. The view ends with the
        block.
        """
        at = ffi.new("uintptr_t *")
        timeout_ns = limit_ns(timeout)

        def call(left: int) -> int:
            return lib.end_peek(self._end, left, at)

        size = self._finish(call(timeout_ns), call, timeout_ns)
        with memoryview(ffi.buffer(ffi.cast("char *", at[0]), size)) as view, view.toreadonly() as message:
            yield message
        result = lib.end_release(self._end)
        if result:
            self._raise(result)

    def recv_object(self, timeout: float | None = None) -> Any:
        """Receive what `Sender.send_object` sent. Raises RingError("object") for a message that is none."""
        import msgpack

        data = self.recv(timeout)
        try:
            return msgpack.unpackb(data, raw=False, strict_map_key=False)
        except Exception as error:  # msgpack raises whatever the bytes make it meet.
            raise RingError(self.name, "object", self.sender_lane if self.info.kind == "mpsc" else None) from error

    @property
    def lost(self) -> int:
        """Messages of a broadcast that were overwritten before this end read them."""
        return lib.end_lost(self._end)

    @property
    def sender_lane(self) -> int:
        """The lane that the last message came by: which of an mpsc's senders sent it."""
        return lib.end_lane(self._end)

    def _room(self) -> str:
        return f"the buffer, or than {super()._room()}"
