"""Packets of gdb's remote serial protocol: `$data#checksum`, acknowledged by `+` or `-` unless both sides agree not to.

What comes in may be anything: it is bounded, and what is no packet is skipped (appendix "GDB Remote Serial Protocol",
sections Overview, Packet Acknowledgment, Interrupts).
"""

from __future__ import annotations

from enum import Enum

PACKET_SIZE = 1 << 17
"""bytes of a packet that are taken at most, as told in PacketSize"""
INTERRUPT, ESCAPE = 0x03, ord("}")
ESCAPED = frozenset(b"#$}*")
FLIP = 0x20
HEX = frozenset(b"0123456789abcdefABCDEF")


class Signal(Enum):
    """What may stand between packets."""

    ACK = "+"
    """the last packet arrived"""
    RESEND = "-"
    """it didn't: send it again"""
    INTERRUPT = "interrupt"
    """Ctrl-C"""
    DAMAGED = "damaged"
    """a packet with a wrong checksum, or too long"""


Item = bytes | Signal
"""a packet's data, as it came (binary parts still escaped), or a signal"""


class PacketReader:
    """Takes a stream apart, however it is cut into pieces."""

    def __init__(self, limit: int = PACKET_SIZE) -> None:
        self._limit = limit
        self._data = bytearray()
        self._inside = False
        """whether `_data` is a packet's beginning, behind its $"""
        self._skipping = False
        """whether the packet is too long: it is damaged, whatever its checksum"""

    def feed(self, data: bytes) -> list[Item]:
        """Return what has become whole with `data`."""
        items: list[Item] = []
        self._data += data
        while self._data:
            if not self._inside:
                self._between(items)
            elif not self._packet(items):
                break
        return items

    def _between(self, items: list[Item]) -> None:
        """Take what stands before the next packet."""
        start = self._data.find(b"$")
        for byte in self._data[: start if start >= 0 else None]:
            if byte == INTERRUPT:
                items.append(Signal.INTERRUPT)
            elif byte in b"+-":
                items.append(Signal(chr(byte)))
        self._inside = start >= 0
        del self._data[: start + 1 if start >= 0 else len(self._data)]

    def _packet(self, items: list[Item]) -> bool:
        """Take the packet whose data has begun; False: more is to come."""
        end = self._data.find(b"#")
        again = self._data.find(b"$", 0, end if end >= 0 else None)
        if again >= 0:  # Its sender has begun anew: no $ stands in a packet.
            del self._data[: again + 1]
            self._skipping = False
            return True
        if end < 0 or len(self._data) < end + 3:
            if (len(self._data) if end < 0 else end) > self._limit:
                self._skipping = True
                del self._data[: end if end >= 0 else len(self._data)]
            return False
        data, told = bytes(self._data[:end]), bytes(self._data[end + 1 : end + 3])
        good = HEX.issuperset(told) and checksum(data) == int(told, 16)
        items.append(data if good and not self._skipping and end <= self._limit else Signal.DAMAGED)
        del self._data[: end + 3]
        self._inside = self._skipping = False
        return True


def checksum(data: bytes) -> int:
    """Return the sum of a packet's data, modulo 256."""
    return sum(data) & 255


def packet(data: bytes) -> bytes:
    """Return `data` (escaped, where it is binary) as a packet."""
    return b"$%b#%02x" % (data, checksum(data))


def escape(data: bytes) -> bytes:
    """Return binary `data` as it may stand in a packet."""
    if not ESCAPED.intersection(data):
        return data
    return b"".join(bytes((ESCAPE, byte ^ FLIP)) if byte in ESCAPED else bytes((byte,)) for byte in data)


def unescape(data: bytes) -> bytes:
    """Return what `escape` was given. Raises ValueError when it ends in the middle."""
    first, *rest = data.split(b"}")
    if any(not part for part in rest):
        raise ValueError("an escaped byte is missing")
    return first + b"".join(bytes((part[0] ^ FLIP,)) + part[1:] for part in rest)
