"""Read a unikernel's ELF file: which parts of it are mapped where, and where it starts.

The file may be anything: every field is checked before it is used. Nothing of it is copied; the guest maps it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hostd.boot._abi import lib
from hostd.boot.errors import ImageError
from hostd.memory import Segment

PAGE = 4096
NOTE_OWNER = "hostd"
NOTE_CONTRACT = 1
PF_X, PF_W = 1, 2
MAX_SEGMENTS = 64


@dataclass(frozen=True, slots=True)
class ImageSegment(Segment):
    """One PT_LOAD, and the pages it takes."""

    @property
    def first_page(self) -> int:
        return self.gpa // PAGE * PAGE

    @property
    def end_page(self) -> int:
        return -(-(self.gpa + self.memory_size) // PAGE) * PAGE


@dataclass(frozen=True)
class Image:
    """A checked program image: its file, segments in address order, entry point and first free page behind it."""

    path: str
    segments: tuple[ImageSegment, ...]
    entry: int

    @property
    def start(self) -> int:
        return self.segments[0].first_page

    @property
    def end(self) -> int:
        return self.segments[-1].end_page

    def describe(self) -> dict[str, Any]:
        """Return the image as plain values, for a message; `Image.of` takes them back."""
        return {"path": self.path, "segments": [asdict(s) for s in self.segments], "entry": self.entry}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Image:
        return cls(plain["path"], tuple(ImageSegment(**s) for s in plain["segments"]), plain["entry"])


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read and check the ELF file at `path`.

    Raises ImageError (not an ELF, truncated, 32-bit, wrong machine, dynamic, overlapping or misplaced PT_LOADs, another
    version of the contract) and OSError (cannot be read).
    """
    path = Path(path).resolve()
    with path.open("rb") as file:
        try:
            return _read(str(path), file)
        except ImageError:
            raise
        # pyelftools and construct raise many kinds (ELFError, ConstructError, struct.error, UnicodeError, ...) on bytes
        # that are no ELF; whatever it is, it says one thing about the file.
        except Exception as error:
            raise ImageError(f"{path}: the ELF file is damaged or truncated ({error}); build it again") from error


def _read(path: str, file: BinaryIO) -> Image:
    # Imported here: a guest process never parses an ELF unless its guest faults.
    from elftools.elf.elffile import ELFFile

    if file.read(4) != b"\x7fELF":
        raise ImageError(f"{path}: is no ELF file; a unikernel is built with `hostd build prog.c -o prog.elf`")
    size = os.fstat(file.fileno()).st_size
    elf = ELFFile(file)
    if elf.elfclass != 64:
        raise ImageError(f"{path}: is a {elf.elfclass}-bit ELF file; a unikernel is 64-bit")
    header = elf.header
    if header.e_machine != "EM_X86_64" or not elf.little_endian:
        raise ImageError(f"{path}: is built for {header.e_machine}; this host runs x86-64")
    if header.e_type != "ET_EXEC":
        raise ImageError(f"{path}: has type {header.e_type}; a unikernel is a static ET_EXEC with fixed addresses")
    if header.e_phoff + header.e_phnum * header.e_phentsize > size:
        raise ImageError(f"{path}: is truncated: its program headers end behind the file's {size} bytes")
    if header.e_phnum > MAX_SEGMENTS:
        raise ImageError(f"{path}: has {header.e_phnum} program headers; at most {MAX_SEGMENTS} are taken")
    segments: list[ImageSegment] = []
    contract = None
    for segment in elf.iter_segments():
        kind = segment.header.p_type
        if kind == "PT_INTERP":
            raise ImageError(f"{path}: asks for a dynamic linker (PT_INTERP); link it statically")
        if kind == "PT_LOAD" and segment.header.p_memsz:
            segments.append(_checked(path, len(segments), segment.header, size))
        elif kind == "PT_NOTE":
            contract = _contract(segment) or contract
    if contract is None:
        raise ImageError(f"{path}: has no hostd note, so it is no unikernel; build one with `hostd build`")
    if contract != lib.GUEST_ABI_VERSION:
        raise ImageError(
            f"{path}: speaks version {contract} of the guest contract, this hostd version {lib.GUEST_ABI_VERSION}; "
            "build it again with `hostd build`"
        )
    return _placed(path, segments, header.e_entry)


def _checked(path: str, index: int, header: Any, file_size: int) -> ImageSegment:
    where = f"{path}: PT_LOAD {index} at {header.p_vaddr:#x}"
    if header.p_filesz > header.p_memsz:
        raise ImageError(f"{where}: has more bytes in the file ({header.p_filesz}) than in memory ({header.p_memsz})")
    if header.p_offset + header.p_filesz > file_size:
        raise ImageError(f"{where}: ends behind the file's {file_size} bytes; the file is truncated")
    if (header.p_vaddr - header.p_offset) % PAGE:
        raise ImageError(f"{where}: lies at file offset {header.p_offset:#x}; mapping needs both equal modulo {PAGE}")
    if header.p_vaddr < lib.GUEST_IMAGE:
        raise ImageError(f"{where}: lies below {lib.GUEST_IMAGE:#x}, the lowest address of a program")
    if header.p_vaddr + header.p_memsz >= 1 << 47:
        raise ImageError(f"{where}: ends above the 47-bit address space")
    return ImageSegment(header.p_vaddr, header.p_offset, header.p_filesz, header.p_memsz, header.p_flags)


def _contract(segment: Any) -> int | None:
    for note in segment.iter_notes():
        if note.n_name == NOTE_OWNER and note.n_type in (NOTE_CONTRACT, "NT_VERSION", "NT_GNU_ABI_TAG"):
            data = note.n_descdata
            return int(struct.unpack("<I", data)[0])
    return None


def _placed(path: str, segments: list[ImageSegment], entry: int) -> Image:
    if not segments:
        raise ImageError(f"{path}: has no PT_LOAD, so nothing to run")
    segments.sort(key=lambda s: s.gpa)
    for low, high in zip(segments, segments[1:], strict=False):
        if low.end_page > high.first_page:
            raise ImageError(f"{path}: PT_LOADs at {low.gpa:#x} and {high.gpa:#x} overlap or share a page")
    if not any(s.flags & PF_X and s.gpa <= entry < s.gpa + s.file_size for s in segments):
        raise ImageError(f"{path}: its entry point {entry:#x} is in no executable PT_LOAD")
    return Image(path, tuple(segments), entry)
