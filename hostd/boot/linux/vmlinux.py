"""A vmlinux: its PT_LOADs, its two entries, its release. The file may be anything: every field is checked."""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from hostd.boot.errors import ImageError
from hostd.boot.linux.kernel import Kernel, end_page
from hostd.memory import Segment
from hostd.memory.layout import PAGE, VGA_HOLE

ELF_MAGIC = b"\x7fELF"
MAX_HEADERS = 64
MAX_NOTES = 1 << 20
"""bytes of a PT_NOTE; a kernel's has some hundred"""
ADDRESS_LIMIT = 1 << 32
"""a kernel is entered with the first 4 GiB mapped, or with no paging at all"""
MAX_SECTIONS = 1024
ZERO_RUN = 1 << 20
"""bytes of zeros in the file from which on they are not mapped; more cuts would be more rows than they save"""
ZERO_PAGE = bytes(PAGE)
PF_X, PF_W = 1, 2
NOTE_OWNER, NOTE_PVH_ENTRY = b"Xen\0", 18
"""XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)"""
NOTE = struct.Struct("<III")
"""n_namesz, n_descsz, n_type"""
BANNER = re.compile(rb"Linux version (\d[!-~]{0,127}) ")


def read_vmlinux(path: Path, source: Path) -> Kernel:
    """Read and check the vmlinux `path`, which is or was unpacked from `source`. Raises ImageError, OSError."""
    with path.open("rb") as file:
        try:
            return _read(path, source, file)
        except ImageError:
            raise
        # pyelftools and construct raise many kinds on bytes that are no ELF (see hostd.boot.elf).
        except Exception as error:
            # It looks where the bytes say, and a place that no file has is EINVAL; all else is the disk's own.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise ImageError(f"{source}: its ELF file is damaged or cut off ({error})") from error


def _read(path: Path, source: Path, file: BinaryIO) -> Kernel:
    from elftools.elf.elffile import ELFFile

    ident = file.read(16)
    if ident[:4] != ELF_MAGIC:
        raise ImageError(f"{source}: what it unpacks to is no ELF file, so no vmlinux")
    if ident[4:5] != b"\x02":
        raise ImageError(f"{source}: is a 32-bit kernel (ELF class {ident[4:5].hex()}); hostd boots 64-bit kernels")
    size = os.fstat(file.fileno()).st_size
    elf = ELFFile(file)
    header = elf.header
    if header.e_machine != "EM_X86_64" or not elf.little_endian:
        raise ImageError(f"{source}: is built for {header.e_machine} (e_machine); this host runs x86-64")
    if header.e_type != "ET_EXEC":
        raise ImageError(f"{source}: has e_type {header.e_type}; a vmlinux is an ET_EXEC (a module is no kernel)")
    if header.e_phoff + header.e_phnum * header.e_phentsize > size:
        raise ImageError(f"{source}: is cut off: its program headers (e_phoff) end behind its {size} bytes")
    if header.e_phnum > MAX_HEADERS:
        raise ImageError(f"{source}: has {header.e_phnum} program headers (e_phnum); at most {MAX_HEADERS} are taken")
    segments: list[Segment] = []
    pvh = None
    for part in elf.iter_segments():
        if part.header.p_type == "PT_LOAD" and part.header.p_memsz:
            segments.append(_segment(source, len(segments), part.header, size))
        elif part.header.p_type == "PT_NOTE" and pvh is None:
            pvh = _pvh_entry(source, part, size)
    segments = _in_order(source, segments)
    _check_entry(source, "e_entry", header.e_entry, segments)
    if pvh is not None:
        _check_entry(source, "the PVH entry (note Xen 18)", pvh, segments)
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        pieces = tuple(piece for segment in segments for piece in _without_zeros(segment, data))
        release = _release(data)
    return Kernel(str(path), str(source), pieces, header.e_entry, pvh, release, code=_code(elf))


def _segment(source: Path, index: int, header: Any, size: int) -> Segment:
    where = f"{source}: PT_LOAD {index} at {header.p_paddr:#x}"
    if header.p_filesz > header.p_memsz:
        raise ImageError(f"{where}: p_filesz {header.p_filesz:#x} is more than p_memsz {header.p_memsz:#x}")
    if header.p_offset + header.p_filesz > size:
        raise ImageError(f"{where}: is cut off: its bytes end at {header.p_offset + header.p_filesz:#x} of {size:#x}")
    if (header.p_paddr - header.p_offset) % PAGE:
        raise ImageError(
            f"{where}: p_offset {header.p_offset:#x} differs from p_paddr modulo {PAGE}, so it can't be mapped"
        )
    if header.p_paddr < VGA_HOLE.stop:
        raise ImageError(f"{where}: p_paddr is below {VGA_HOLE.stop:#x}, where a PC has its video memory and firmware")
    if header.p_paddr + header.p_memsz > ADDRESS_LIMIT:
        raise ImageError(f"{where}: p_paddr and p_memsz {header.p_memsz:#x} put its end above 4 GiB")
    return Segment(header.p_paddr, header.p_offset, header.p_filesz, header.p_memsz, header.p_flags)


def _in_order(source: Path, segments: list[Segment]) -> list[Segment]:
    if not segments:
        raise ImageError(f"{source}: has no PT_LOAD, so nothing to boot")
    segments = sorted(segments, key=lambda segment: segment.gpa)
    for before, after in zip(segments, segments[1:], strict=False):
        if end_page(before) > after.gpa // PAGE * PAGE:
            raise ImageError(
                f"{source}: its PT_LOADs at {before.gpa:#x} and {after.gpa:#x} (p_paddr) overlap or share a page"
            )
    return segments


def _pvh_entry(source: Path, part: Any, size: int) -> int | None:
    if part.header.p_filesz > MAX_NOTES or part.header.p_offset + part.header.p_filesz > size:
        raise ImageError(f"{source}: its PT_NOTE has {part.header.p_filesz} bytes (p_filesz), too many or cut off")
    notes = part.data()
    at = 0
    # Read here and not by pyelftools, which takes the numbers of every owner's notes for GNU's.
    while at + NOTE.size <= len(notes):
        name_size, size, kind = NOTE.unpack_from(notes, at)
        name_at = at + NOTE.size
        value_at = name_at + _aligned(name_size)
        at = value_at + _aligned(size)
        if kind == NOTE_PVH_ENTRY and notes[name_at : name_at + name_size] == NOTE_OWNER:
            if size not in (4, 8) or value_at + size > len(notes):
                raise ImageError(f"{source}: its PVH entry (note Xen 18) has {size} bytes instead of 4 or 8")
            return int.from_bytes(notes[value_at : value_at + size], "little")
    return None


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def _code(elf: Any) -> tuple[int, int]:
    """Return the physical addresses of the code in the first executable PT_LOAD, by the section headers, or (0, 0)."""
    from elftools.elf.constants import SH_FLAGS

    load = next((s.header for s in elf.iter_segments("PT_LOAD") if s.header.p_flags & (PF_X | PF_W) == PF_X), None)
    if load is None or not 0 < elf.num_sections() <= MAX_SECTIONS:
        return 0, 0
    start, end = load.p_vaddr + load.p_filesz, load.p_vaddr
    for section in elf.iter_sections():
        first, last = section.header.sh_addr, section.header.sh_addr + section.header.sh_size
        inside = load.p_vaddr <= first < last <= load.p_vaddr + load.p_filesz
        if section.header.sh_flags & SH_FLAGS.SHF_EXECINSTR and inside:
            start, end = min(start, first), max(end, last)
    return (start - load.p_vaddr + load.p_paddr, end - load.p_vaddr + load.p_paddr) if start < end else (0, 0)


def _check_entry(source: Path, field: str, entry: int, segments: list[Segment]) -> None:
    for segment in segments:
        if segment.gpa <= entry < segment.gpa + segment.file_size and segment.flags & PF_X:
            return
    raise ImageError(f"{source}: {field} is {entry:#x}, in no executable PT_LOAD; a vmlinux's is a physical address")


def _release(data: mmap.mmap) -> str:
    found = BANNER.search(data)
    return found[1].decode("ascii") if found else ""


def _without_zeros(segment: Segment, data: mmap.mmap) -> list[Segment]:
    """Cut `segment` where its file has nothing but zeros for long, so that those are memory and not pages of the file.

    A vmlinux may have its .bss in the file, and 2 MiB-aligned parts with zeros between, which become the guest's RAM.
    """
    pieces: list[Segment] = []
    start, at = 0, -segment.gpa % PAGE
    while at + ZERO_RUN <= segment.file_size:
        first = segment.file_offset + at
        if data[first : first + PAGE] != ZERO_PAGE:
            at += PAGE
            continue
        end = at
        while end + PAGE <= segment.file_size and data[first + end - at : first + end - at + PAGE] == ZERO_PAGE:
            end += PAGE
        if end - at >= ZERO_RUN and at > start:
            pieces.append(_piece(segment, start, at, end))
            start = end
        at = end
    if start < segment.memory_size:
        pieces.append(_piece(segment, start, segment.file_size, segment.memory_size))
    return pieces


def _piece(segment: Segment, start: int, file_end: int, end: int) -> Segment:
    """Return bytes [start, end) of `segment`, of which those up to `file_end` are in the file."""
    return Segment(segment.gpa + start, segment.file_offset + start, file_end - start, end - start, segment.flags)
