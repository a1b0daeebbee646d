"""Packets between a region's owner and those who join it: msgpack maps with descriptors, over a SOCK_SEQPACKET socket.

Who joins says {"hello": VERSION, "access": "rw" | "ro"} and gets {"ok": {...}} with the region's memory, then as many
{"channels": [...]} and {"bells": N} with N eventfds as it takes. From then on it asks, one at a time, for
{"attach": [channel, role, lane or None]} or {"release": [channel, role, lane]}, and gets {"ok": lane} or
{"error": text}. The connection's end is the end of all that it holds.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Any

import msgpack

VERSION = 1
PACKET = 65536
DESCRIPTORS = 200  # in one packet; the kernel's limit is 253
CHANNELS = 64


class WireError(Exception):
    """A packet that is none."""


def send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one packet. Raises OSError."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([msgpack.packb(message)], ancillary)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one packet and its descriptors, which are the caller's; None at the end. Raises WireError, OSError."""
    room = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(PACKET, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireError("a packet too long")
        if not data:
            close(descriptors)
            return None
        message = msgpack.unpackb(data, raw=False)
        if not isinstance(message, dict):
            raise WireError("a packet that is no map")
    except WireError:
        close(descriptors)
        raise
    except Exception as error:  # msgpack raises whatever the bytes make it meet.
        close(descriptors)
        raise WireError("a packet that is no msgpack") from error
    return message, list(descriptors)


def close(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
