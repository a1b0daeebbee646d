"""What a stripped kernel tells of itself: a real one's names and stacks, and files that are none."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.boot.linux.kernel import open_kernel
from hostd.gdb.kallsyms import DIGITS, kernel_symbols
from hostd.gdb.linux_symbols import kernel_file, symbols_of
from hostd.gdb.orc import frames, read_entries
from hostd.gdb.symbols import address_of, has_symbols
from hostd.images import packages
from hostd.images.folders import cache

MANY = 5000 if "HOSTD_LONG" in os.environ else 60


@pytest.fixture(scope="module")
def kernel() -> Path:
    """Debian's kernel, as guests map it."""
    return Path(open_kernel(packages.vmlinuz(packages.at_hand("debian-cloud")), cache("kernels")).path)


def test_a_stripped_kernel_gets_names_and_unwinding(kernel: Path, tmp_path: Path) -> None:
    assert not has_symbols(kernel)
    made = kernel_file(kernel, tmp_path / "symbols")
    assert made is not None
    text = re.search(r"\.text +PROGBITS +(\w+)", _run("readelf", "-SW", kernel))
    assert text is not None
    assert address_of(made, "_text") == int(text[1], 16)
    # What the kernel exports it has the address of in a table of its own, too.
    assert address_of(made, "vfs_write") is not None
    assert address_of(made, "no_such_function") is None
    before = made.stat()
    assert kernel_file(kernel, made) == made
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    said = _run("gdb", "-nx", "-batch", "-ex", "info symbol vfs_write", made)
    assert "vfs_write in section .text" in said
    # Frames: a function's first instruction stands 8 bytes below the frame, with the return address there.
    decoded = _run("readelf", "--debug-dump=frames-interp", made)
    address = address_of(made, "vfs_write")
    assert address is not None
    block = decoded[decoded.index(f"pc={address:016x}") :]
    rows = block.splitlines()[1:4]
    assert re.match(rf"{address:016x} rsp\+8 .*c-8", rows[1]), rows


def test_files_that_are_no_kernels(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    plain = tmp_path / "plain"
    shutil.copy(program, plain)
    assert symbols_of(plain) is None
    assert kernel_symbols(DIGITS * 3, 0) == []
    assert kernel_symbols(bytes(1000) + DIGITS + bytes(100_000), 0) == []


@settings(max_examples=MANY, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_bytes_around_what_looks_like_the_tokens(before: bytes, behind: bytes) -> None:
    assert kernel_symbols(before + DIGITS + behind, 0) == []


@settings(max_examples=MANY, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.binary(min_size=6, max_size=6)), max_size=20))
def test_any_orc_entries_give_whole_frames(entries: list[tuple[int, bytes]]) -> None:
    made = frames(sorted(entries), [(0, 500), (500, 1001)])
    at = 0
    while at < len(made):  # Lengths lead from one to the next, to the end.
        at += 4 + struct.unpack_from("<I", made, at)[0]
    assert at == len(made)


def test_orc_entries_are_relative_to_their_places() -> None:
    table = bytes(range(12))
    assert read_entries(struct.pack("<2i", 0x100, -4), 0x1000, table) == [(0x1000, table[6:]), (0x1100, table[:6])]


def _run(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True, timeout=100
    ).stdout
