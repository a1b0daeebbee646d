"""The sending end of a channel."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shm._shm import ffi, lib
from shm.end import FOREVER, INTERRUPTED, End, limit_ns
from shm.errors import ChannelFull, MessageTooLong, ShmError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined, unused-ignore]

_send = lib.end_send
BATCH = 512
"""messages that are handed to C together"""
BATCH_BYTES = 1 << 18
"""more bytes than these are not worth being put together first: their copying is what costs"""
_PLAIN = {bytes, bytearray}


def _pack(batch: Sequence[Any]) -> tuple[bytes, array[int]] | None:
    """Return all bytes of `batch` in one piece, and the messages' sizes; None where that is not for this batch."""
    if not _PLAIN.issuperset(map(type, batch)):
        return None  # What other buffers call their length may be something else than bytes.
    lengths = list(map(len, batch))
    total = sum(lengths)
    if total > BATCH_BYTES:
        return None
    data = b"".join(batch)
    # A bytearray may have changed meanwhile, in another thread.
    return (data, array("I", lengths)) if len(data) == total else None


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
        """Send copies of all `messages`, each with the time limit; return how many.

        The bytes and bytearrays of a list or tuple go together, up to BATCH at a time, which is many times faster than
        one by one; an iterator's messages go as they come. Raises as `send`: then the exception's `sent` says how many
        messages went out before the one that did not.
        """
        count = 0
        try:
            if not isinstance(messages, list | tuple):
                for message in messages:
                    self.send(message, timeout)
                    count += 1
                return count
            for at in range(0, len(messages), BATCH):
                batch = messages[at : at + BATCH]
                packed = _pack(batch)
                count += self.send_many(iter(batch), timeout) if packed is None else self._send_packed(*packed, timeout)
        except ShmError as error:
            error.sent += count
            raise
        return count

    def _send_packed(self, data: bytes, sizes: array[int], timeout: float | None) -> int:
        """Send messages of `sizes` that lie in `data` one behind the other; return how many."""
        limit = left = limit_ns(timeout)
        progress, sent, at = ffi.new("struct end_progress *"), 0, 0
        start, lengths = ffi.from_buffer("char[]", data), ffi.from_buffer("uint32_t[]", sizes)
        while sent < len(sizes):
            result = lib.end_send_many(self._end, start + at, lengths + sent, len(sizes) - sent, left, progress)
            sent += progress.sent
            at += progress.bytes
            if result == INTERRUPTED:  # Python's signal handlers run here; whoever waits goes on with what is left.
                if limit > 0:
                    left = max(0, (limit if progress.sent else left) - progress.waited_ns)
            elif result:
                try:
                    self._raise(result)
                except ShmError as error:
                    error.sent = sent
                    raise
        return sent

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
