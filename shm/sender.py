"""The sending end of a channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shm._shm import ffi, lib
from shm.end import FOREVER, End, limit_ns
from shm.errors import ChannelFull, MessageTooLong

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined, unused-ignore]

_send = lib.end_send


class Sender(End):
    """Sends messages; they arrive in order. A broadcast's never waits, any other waits while the ring is full.

    `timeout` in seconds (None: no limit, 0: not at all). Raises ChannelFull when it passes, ChannelClosed or PeerGone
    when nobody receives any more, MessageTooLong, RingError when the peer spoiled the ring.
    """

    role = "send"
    timeout_error = ChannelFull

    def send(self, data: Buffer | Any, timeout: float | None = None) -> None:
        """Send a copy of `data`: bytes, or anything with their buffer."""
        if type(data) is not bytes:
            data = ffi.from_buffer("char[]", data)
        timeout_ns = FOREVER if timeout is None else limit_ns(timeout)
        result = _send(self._end, data, len(data), timeout_ns)
        if result:
            self._finish(result, lambda left: _send(self._end, data, len(data), left), timeout_ns)

    def send_many(self, messages: Iterable[Buffer | Any], timeout: float | None = None) -> int:
        """Send copies of all `messages`, each with the time limit; return how many."""
        count = 0
        for message in messages:
            self.send(message, timeout)
            count += 1
        return count

    @contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[memoryview]:
        """Give `size` bytes of the ring itself to write to; they are sent at the end, unless an exception comes.

        The memory holds what was there before. The view ends with the block.
        """
        at = ffi.new("uintptr_t *")
        timeout_ns = limit_ns(timeout)
        if size < 0:
            raise MessageTooLong(f"channel {self.name}: a message of {size} bytes can't be")
        result = lib.end_reserve(self._end, size, timeout_ns, at)
        if result:
            self._finish(result, lambda left: lib.end_reserve(self._end, size, left, at), timeout_ns)
        with memoryview(ffi.buffer(ffi.cast("char *", at[0]), size)) as view:
            yield view
        result = lib.end_commit(self._end, size)
        if result:
            self._raise(result)

    def send_object(self, value: Any, timeout: float | None = None) -> None:
        """Send what msgpack can carry: None, numbers, text, bytes, lists and maps of them."""
        import msgpack

        self.send(msgpack.packb(value, use_bin_type=True), timeout)
