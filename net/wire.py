"""Frames of the control socket: a 4-byte little-endian length, then that many bytes of msgpack holding one map.

A request's descriptors come by SCM_RIGHTS with its first bytes; the next request is sent after the answer. Whatever
comes in is hostile: a length over the limit is refused before its body is kept, descriptors over theirs are closed.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from net.errors import NetError

VERSION = 1
"""of the control socket's protocol"""
REQUEST_LIMIT = 64 << 10
"""bytes of one request"""
ANSWER_LIMIT = 16 << 20
"""bytes of one answer"""
DESCRIPTORS = 16
"""most descriptors of one request"""
HEADER = struct.Struct("<I")
ITEM_LIMIT = 1 << 16  # items of one array or map
CHUNK = 65536

Message = dict[str, Any]


class WireError(NetError):
    """Bytes that are no frame; the stream can't be read on."""


def pack(message: Message, limit: int = ANSWER_LIMIT) -> bytes:
    """Return `message` as one frame. Raises WireError when it is too large."""
    body: bytes = msgpack.packb(message)
    if len(body) > limit:
        raise WireError(f"a message of {len(body)} bytes is larger than the limit of {limit} bytes")
    return HEADER.pack(len(body)) + body


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
    """Send a frame's first bytes, with its descriptors; return how many. Raises OSError."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return connection.sendmsg([data], ancillary)


class Received(NamedTuple):
    """A message, and the descriptors that came with it, which are the caller's."""

    message: Message
    descriptors: list[int]
    lost: bool
    """descriptors were lost: there were too many, or this process can have no more; then none is given"""


class Incoming:
    """Cuts a stream of bytes into messages, each with the descriptors that came with it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self._lost = False

    def receive(self, connection: socket.socket) -> list[Received] | None:
        """Take what is there; return the messages it completes; None at the end. Raises WireError, OSError."""
        room = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
        data, ancillary, flags, _ = connection.recvmsg(CHUNK, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self._descriptors += found
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > DESCRIPTORS:
            self.close()
            self._lost = True
        return self.feed(data) if data else None

    def feed(self, data: bytes) -> list[Received]:
        """Take the next bytes; return the messages they complete. Raises WireError."""
        self._buffer += data
        messages = []
        at = 0
        try:
            while len(self._buffer) - at >= HEADER.size:
                (size,) = HEADER.unpack_from(self._buffer, at)
                if size > self.limit:
                    raise WireError(f"a frame of {size} bytes is larger than the limit of {self.limit} bytes")
                end = at + HEADER.size + size
                if len(self._buffer) < end:
                    break
                message = _unpack(bytes(self._buffer[at + HEADER.size : end]))
                messages.append(Received(message, self._descriptors, self._lost))
                self._descriptors, self._lost = [], False
                at = end
        except WireError:
            for received in messages:
                close(received.descriptors)
            raise
        del self._buffer[:at]
        return messages

    def close(self) -> None:
        """Close the descriptors of a request that did not come whole."""
        close(self._descriptors)
        self._descriptors = []


def _unpack(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body, max_array_len=ITEM_LIMIT, max_map_len=ITEM_LIMIT)
    except Exception as error:  # msgpack has many: ValueError, UnpackException, UnicodeDecodeError, StackError, ...
        raise WireError("a frame holds no valid msgpack") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise WireError("a frame holds no map with text keys")
    return message


def close(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
