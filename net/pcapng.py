"""Writing captures: pcapng (draft-ietf-opsawg-pcapng), as Wireshark and tshark read it.

One section; an interface block for each port, where it is first seen; an enhanced packet block for each frame, with its
time in nanoseconds; statistics at the end.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
BYTE_ORDER = 0x1A2B3C4D
ETHERNET = 1
END_OF_OPTIONS = 0
SECTION_APPLICATION = 4
INTERFACE_NAME, INTERFACE_DESCRIPTION, INTERFACE_RESOLUTION = 2, 3, 9
NANOSECONDS = b"\x09"
PACKET_FLAGS, PACKET_DROPPED = 2, 4
INBOUND, UNICAST, MULTICAST, BROADCAST = 1, 1 << 2, 2 << 2, 3 << 2
STATISTICS_RECEIVED = 4
UNKNOWN_LENGTH = -1

_PACKET = struct.Struct("<IIIIIII")
_FLAGS = struct.Struct("<HHI")
_DROPPED = struct.Struct("<HHQ")
_LENGTH = struct.Struct("<I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + _PADDING[len(value) % 4]


def _options(*options: tuple[int, bytes]) -> bytes:
    return b"".join(_option(code, value) for code, value in options) + _option(END_OF_OPTIONS, b"")


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + _LENGTH.pack(length)


def _time(time_ns: int) -> bytes:
    return struct.pack("<II", time_ns >> 32, time_ns & 0xFFFFFFFF)


class Writer:
    """Writes one capture to `file`; flushing is the caller's."""

    def __init__(self, file: BinaryIO, application: str) -> None:
        self._file = file
        self._interfaces = 0
        body = struct.pack("<IHHq", BYTE_ORDER, 1, 0, UNKNOWN_LENGTH)
        file.write(_block(SECTION, body + _options((SECTION_APPLICATION, application.encode()))))

    def interface(self, name: str, description: str, snap: int) -> int:
        """Add an interface of which `snap` bytes of each frame are kept (0: all); return its number."""
        options = _options(
            (INTERFACE_NAME, name.encode()),
            (INTERFACE_DESCRIPTION, description.encode()),
            (INTERFACE_RESOLUTION, NANOSECONDS),
        )
        self._file.write(_block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, snap) + options))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(self, interface: int, time_ns: int, data: bytes, size: int, dropped: int = 0) -> None:
        """Add a frame of `size` bytes of which `data` were kept; `dropped` were lost since the last one."""
        kind = BROADCAST if data[:6] == b"\xff" * 6 else MULTICAST if data[0] & 1 else UNICAST
        options = _FLAGS.pack(PACKET_FLAGS, 4, INBOUND | kind)
        if dropped:
            options += _DROPPED.pack(PACKET_DROPPED, 8, dropped)
        padding = _PADDING[len(data) % 4]
        length = 36 + len(data) + len(padding) + len(options)
        head = _PACKET.pack(PACKET, length, interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), size)
        self._file.write(b"".join((head, data, padding, options, b"\0\0\0\0", _LENGTH.pack(length))))

    def statistics(self, interface: int, time_ns: int, received: int) -> None:
        """Add how many frames an interface had by `time_ns`."""
        options = _options((STATISTICS_RECEIVED, struct.pack("<Q", received)))
        self._file.write(_block(STATISTICS, struct.pack("<I", interface) + _time(time_ns) + options))
