"""Frames: a 4-byte little-endian length, then that many bytes of msgpack holding one map.

Used by the control socket and by guest processes. Whatever comes in is hostile: a length over the limit is
refused before its body is kept, and what doesn't decode to a map with text keys is an error, never a crash.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

REQUEST_LIMIT = 1 << 20
"""bytes of one request"""
REPLY_LIMIT = 16 << 20
"""bytes of one answer"""
HEADER = struct.Struct("<I")
ITEM_LIMIT = 1 << 16  # items of one array or map

Message = dict[str, Any]


class FrameError(ValueError):
    """Bytes that are no frame, or a message too large for one; the text is one sentence."""


def pack_frame(message: Message, limit: int = REPLY_LIMIT) -> bytes:
    """Return `message` as one frame. Raises FrameError when its body is larger than `limit` bytes."""
    body: bytes = msgpack.packb(message)
    if len(body) > limit:
        raise FrameError(f"a message of {len(body)} bytes is larger than the limit of {limit} bytes")
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self, limit: int = REPLY_LIMIT) -> None:
        self.limit = limit
        self.buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take the next bytes of the stream; return the messages that they complete.

        Raises FrameError for a length over the limit and for a body that is no msgpack map; the stream can't
        be read on after it.
        """
        self.buffer += data
        messages = []
        at = 0
        while len(self.buffer) - at >= HEADER.size:
            (size,) = HEADER.unpack_from(self.buffer, at)
            if size > self.limit:
                raise FrameError(f"a frame of {size} bytes is larger than the limit of {self.limit} bytes")
            end = at + HEADER.size + size
            if len(self.buffer) < end:
                break
            messages.append(_unpack(bytes(self.buffer[at + HEADER.size : end])))
            at = end
        del self.buffer[:at]
        return messages

    @property
    def midway(self) -> bool:
        """Tell whether the stream stands in the middle of a frame."""
        return bool(self.buffer)


def _unpack(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body, max_array_len=ITEM_LIMIT, max_map_len=ITEM_LIMIT)
    # msgpack has many: ValueError, UnpackException, UnicodeDecodeError, StackError, ...
    except Exception as error:
        raise FrameError("a frame holds no valid msgpack") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise FrameError("a frame holds no map with text keys")
    return message
