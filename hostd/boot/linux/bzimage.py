"""A bzImage: its setup header and its packed payload.

Format: Linux's Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import bz2
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from hostd.boot.errors import ImageError

HEADER_AT = 0x1F1
MAGIC_AT = 0x202
HEADER_LIMIT = 0x290
"""the header must not reach the zero page's next field, edd_mbr_sig_buffer"""
PAYLOAD_PROTOCOL = 0x0208
"""first version of the boot protocol with payload_offset"""
XLF_KERNEL_64 = 1
SECTOR = 512
VERSION_SIZE = 256

MAX_VMLINUX = 1 << 30
"""bytes; a distribution's vmlinux has 50 to 70 million"""
MAX_DICTIONARY = 144 << 20
"""bytes of memory that an unpacker may ask for: kernels are packed with a history of up to 128 MiB"""
CHUNK = 1 << 20
LZ4_MAGIC = bytes.fromhex("02214c18")
LZ4_BLOCK = 8 << 20
"""unpacked bytes of a legacy LZ4 block"""


@dataclass(frozen=True, slots=True)
class Packed:
    """What a bzImage's header says: where its payload lies in the file, how large it unpacks, and the header itself."""

    offset: int
    length: int
    unpacked: int
    version: str
    setup_header: bytes


def read_header(path: Path, file: BinaryIO) -> Packed:
    """Read and check the setup header of the bzImage `file`. Raises ImageError."""
    size = os.fstat(file.fileno()).st_size
    head = _at(file, 0, HEADER_LIMIT)
    if len(head) < HEADER_LIMIT:
        raise ImageError(f"{path}: is cut off: it has {len(head)} bytes, its setup header alone needs {HEADER_LIMIT}")
    protocol = _field(head, "H", 0x206)
    if protocol < PAYLOAD_PROTOCOL:
        raise ImageError(
            f"{path}: speaks boot protocol {protocol:#06x}, which has no payload_offset; "
            f"at least {PAYLOAD_PROTOCOL:#06x} (Linux 2.6.26) is needed"
        )
    if not _field(head, "H", 0x236) & XLF_KERNEL_64:
        raise ImageError(f"{path}: is a 32-bit kernel (xloadflags lacks XLF_KERNEL_64); hostd boots 64-bit kernels")
    setup = ((_field(head, "B", HEADER_AT) or 4) + 1) * SECTOR
    offset, length = setup + _field(head, "I", 0x248), _field(head, "I", 0x24C)
    if length < 8 or offset + length > size:
        raise ImageError(
            f"{path}: is cut off: payload_offset and payload_length put its payload at {offset:#x} to "
            f"{offset + length:#x}, the file has {size:#x} bytes"
        )
    unpacked = struct.unpack("<I", _at(file, offset + length - 4, 4))[0]
    if not 0 < unpacked <= MAX_VMLINUX:
        raise ImageError(f"{path}: its payload says it unpacks to {unpacked} bytes; at most {MAX_VMLINUX} are taken")
    end = min(MAGIC_AT + head[0x201], HEADER_LIMIT)
    return Packed(offset, length, unpacked, _version(file, head), head[HEADER_AT:end])


def unpack(path: Path, file: BinaryIO, packed: Packed, out: IO[bytes]) -> None:
    """Unpack the payload of the bzImage `file` into `out`, never more than it says. Raises ImageError."""
    magic = _at(file, packed.offset, 6)
    name, unpacker = next(((name, make) for start, name, make in UNPACKERS if magic.startswith(start)), ("", None))
    if unpacker is None:
        raise ImageError(
            f"{path}: its payload is packed in a way that hostd doesn't know (it begins with {magic.hex(' ')}); "
            "gzip, bzip2, lzma, xz, lz4 and zstd are known; unpack it yourself and name the vmlinux"
        )
    written = 0
    try:
        for part in unpacker(_payload(file, packed)):
            written += len(part)
            if written > packed.unpacked:
                raise ImageError(f"{path}: its {name} payload unpacks to more than the {packed.unpacked} bytes it says")
            out.write(part)
    except ImageError:
        raise
    # Each library has errors of its own (zlib.error, LZMAError, ZstdError, LZ4BlockError, OSError, EOFError, ...).
    except (Exception, MemoryError) as error:
        raise ImageError(f"{path}: its {name} payload is damaged or cut off after {written} bytes ({error})") from error
    if written != packed.unpacked:
        raise ImageError(f"{path}: its {name} payload unpacks to {written} bytes, but says {packed.unpacked}")


def _payload(file: BinaryIO, packed: Packed) -> Iterator[bytes]:
    at, end = packed.offset, packed.offset + packed.length
    while at < end:
        data = _at(file, at, min(CHUNK, end - at))
        if not data:
            return
        yield data
        at += len(data)


def _streamed(decompressor: Any, parts: Iterator[bytes]) -> Iterator[bytes]:
    """Run a decompressor of the standard library's kind (`decompress(data, max_length)`, `eof`, `needs_input`)."""
    for part in parts:
        yield decompressor.decompress(part, CHUNK)
        while not decompressor.eof and not decompressor.needs_input:
            yield decompressor.decompress(b"", CHUNK)
        if decompressor.eof:  # What follows is the size.
            return
    raise EOFError("the stream has no end")


def _gzip(parts: Iterator[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for part in parts:
        rest = part
        while rest and not inflate.eof:
            yield inflate.decompress(rest, CHUNK)
            rest = inflate.unconsumed_tail
        while not inflate.eof and (more := inflate.decompress(b"", CHUNK)):
            yield more
        if inflate.eof:
            return
    raise EOFError("the stream has no end")


def _bzip2(parts: Iterator[bytes]) -> Iterator[bytes]:
    return _streamed(bz2.BZ2Decompressor(), parts)


def _lzma(parts: Iterator[bytes]) -> Iterator[bytes]:
    return _streamed(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_DICTIONARY), parts)


def _xz(parts: Iterator[bytes]) -> Iterator[bytes]:
    return _streamed(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY), parts)


def _zstd(parts: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    source = _Source(_without_size(parts))
    with zstandard.ZstdDecompressor(max_window_size=MAX_DICTIONARY).stream_reader(
        cast("BinaryIO", source), read_size=CHUNK
    ) as reader:
        while data := reader.read(CHUNK):
            yield data


def _without_size(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Hold back the last four bytes, which are no part of the stream."""
    held = b""
    for part in parts:
        held += part
        yield held[:-4]
        held = held[-4:]


class _Source:
    """A file to read made of parts, for libraries that want one."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def read(self, size: int = CHUNK) -> bytes:
        while len(self._rest) < size:
            part = next(self._parts, None)
            if part is None:
                break
            self._rest += part
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _lz4(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack legacy frames: a magic, then blocks of a 32-bit length and as many bytes; the unpacked size ends all."""
    import lz4.block

    source = _Source(parts)
    source.read(len(LZ4_MAGIC))
    while len(word := source.read(4)) == 4 and (more := source.read(1)):
        if word == LZ4_MAGIC:  # Frames may follow each other.
            word = more + source.read(3)
            more = b""
        length = int.from_bytes(word, "little")
        if length > LZ4_BLOCK + LZ4_BLOCK // 255 + 16:
            raise ValueError(f"an LZ4 block of {length} bytes")
        block = more + source.read(length - len(more))
        if len(block) != length:
            raise EOFError("an LZ4 block is cut off")
        yield lz4.block.decompress(block, uncompressed_size=LZ4_BLOCK)


def _plain(parts: Iterator[bytes]) -> Iterator[bytes]:
    return parts


UNPACKERS: tuple[tuple[bytes, str, Callable[[Iterator[bytes]], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\xfd7zXZ", "xz", _xz),
    (LZ4_MAGIC, "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)


def _version(file: BinaryIO, head: bytes) -> str:
    """Return the release that kernel_version points to: the first word of a string in the setup code."""
    pointer = _field(head, "H", 0x20E)
    if not pointer:
        return ""
    text = _at(file, pointer + SECTOR, VERSION_SIZE).split(b"\0")[0].split(b" ")[0]
    return text.decode("ascii", "replace") if text.isascii() and text.decode("ascii").isprintable() else ""


def _field(head: bytes, layout: str, offset: int) -> int:
    return int(struct.unpack_from("<" + layout, head, offset)[0])


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
