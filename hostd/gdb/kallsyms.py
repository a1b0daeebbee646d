"""The symbols that a stripped Linux kernel carries inside itself, for its own messages: kallsyms.

Format: scripts/kallsyms.c of the kernel's sources (Linux 6.1; Linux 6.4 put the addresses behind the tables). Names
are sequences of tokens; addresses are offsets from a base. No header says where the tables lie, so they are looked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
FIRST_DIGIT, TOKENS = 0x30, 256
GROUP = 256
"""symbols from one marker to the next"""
LONGEST = 512 + 2
"""bytes of one name in the table"""
SEQUENCE = 3
MOST = 1 << 20
"""symbols"""
ALIGN = 8
KERNEL = 0xFFFF_FFFF_8000_0000


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol: its address, its type as nm(1) has it (t, T: code), and its name."""

    address: int
    type: str
    name: str


def kernel_symbols(data: bytes, text: int) -> list[Symbol]:
    """Return the symbols in a vmlinux whose .text lies at the address `text`, by address; none where there are none."""
    at = data.find(DIGITS)
    while at >= 0:
        symbols = _symbols_at(data, at)
        if any(symbol.name in ("_text", "_stext") and symbol.address == text for symbol in symbols):
            return sorted(symbols, key=lambda symbol: symbol.address)
        at = data.find(DIGITS, at + 1)
    return []


def _symbols_at(data: bytes, digits: int) -> list[Symbol]:
    """Return the symbols, if the ten digits' tokens at `digits` are the kernel's; anything else may look like them."""
    try:
        found = _Tables.at(data, digits)
        return [] if found is None else found.symbols()
    except (ValueError, IndexError, struct.error):  # A table that leads out of the file.
        return []


@dataclass(frozen=True)
class _Tables:
    """Where the parts lie in the file's `data`."""

    data: bytes
    tokens: list[bytes]
    names: int
    count: int
    behind: int
    """the first byte behind the tables of tokens"""

    @classmethod
    def at(cls, data: bytes, digits: int) -> _Tables | None:
        """Find the tables by the place where the tokens of the ten digits may stand."""
        start = digits
        for _ in range(FIRST_DIGIT):
            start = data.rfind(b"\0", 0, start - 1) + 1
        tokens, offsets, at = [], [], start
        for _ in range(TOKENS):
            end = data.index(b"\0", at)
            tokens.append(data[at:end])
            offsets.append(at - start)
            at = end + 1
        index = _up(at)
        if offsets[-1] > 0xFFFF or data[index : index + 2 * TOKENS] != struct.pack(f"<{TOKENS}H", *offsets):
            return None
        for first, markers in _markers(data, start):
            lowest = _up(first - markers[-1] - GROUP * LONGEST)
            for names in range(max(lowest, ALIGN), first - markers[-1], ALIGN):
                [count] = struct.unpack_from("<I", data, names - ALIGN)
                if (len(markers) - 1) * GROUP < count <= len(markers) * GROUP and _fits(data, names, markers):
                    return cls(data, tokens, names, count, index + 2 * TOKENS)
        return None

    def symbols(self) -> list[Symbol]:
        at, found = self.names, []
        addresses = self._addresses()
        for address in addresses:
            size, at = _length(self.data, at)
            name = b"".join(self.tokens[token] for token in self.data[at : at + size]).decode("ascii", "replace")
            at += size
            found.append(Symbol(address, name[:1], name[1:]))
        return found

    def _addresses(self) -> list[int]:
        before = self.names - 2 * ALIGN
        places = [(before - _up(4 * self.count), before)]
        places.append((_up(self.behind), _up(_up(self.behind) + 4 * self.count)))
        for offsets, base_at in places:
            [base] = struct.unpack_from("<Q", self.data, base_at)
            if base >= KERNEL:
                numbers = struct.unpack_from(f"<{self.count}i", self.data, offsets)
                if min(numbers) < 0:  # Those that are not negative are no addresses (per-CPU).
                    return [base - 1 - number if number < 0 else number for number in numbers]
                return [base + number for number in numbers]
        return []


def _markers(data: bytes, tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Yield what may be the markers (where every 256th name is) before the tokens, and where they begin.

    Between the two may be a sequence of numbers, SEQUENCE bytes for each symbol: since Linux 6.2, and late 6.1.
    """
    for count in range(GROUP, MOST):
        number = -(-count // GROUP)
        for between in (SEQUENCE * count, 0) if count % GROUP == 0 else (SEQUENCE * count,):
            first = tokens - _up(between) - _up(4 * number)
            if first < 0:
                return
            zero, second = struct.unpack_from("<II", data, first)
            if zero or not GROUP * 2 <= second <= GROUP * LONGEST:
                continue
            found = list(struct.unpack_from(f"<{number}I", data, first))
            if all(low < high for low, high in pairwise(found)):
                yield first, found


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Return how many tokens the name at `at` has, and where they begin."""
    size = data[at]
    return (size, at + 1) if size < 0x80 else ((size & 0x7F) | data[at + 1] << 7, at + 2)


def _fits(data: bytes, names: int, markers: list[int]) -> bool:
    at = names
    for marker in markers[1:4]:
        for _ in range(GROUP):
            size, at = _length(data, at)
            at += size
        if at - names != marker:
            return False
    return True


def _up(at: int) -> int:
    return -(-at // ALIGN) * ALIGN
