"""Usage by row: who shares what with whom."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostd.memory import Anonymous, Image, SharedFile, SlotTable, smaps
from hostd.memory.layout import PAGE
from hostd.memory.smaps import RowUsage

MIB = 1 << 20

TEXT = """\
7f0000000000-7f0000001000 ---p 00000000 00:00 0
Rss:                   0 kB
7f0000001000-7f0000003000 rw-p 00000000 00:00 0          [anon:guest: ram]
Size:                  8 kB
Rss:                   8 kB
Pss:                   6 kB
Shared_Clean:          4 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
Swap:                 12 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac
7f0000003000-7f0000005000 r--p 00000000 08:01 5          /a file: with a colon
Rss:                   4 kB
Pss:                   4 kB
Private_Clean:         4 kB
7f0000400000-7f0000600000 rw-s 00000000 00:10 9          /anon_hugepage (deleted)
Rss:                   0 kB
Pss:                   0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:    2048 kB
"""


def test_parse() -> None:
    ranges = [(0x7F0000400000, 2 * MIB), (0x7F0000001000, 0x4000), (0x1000, 0x1000)]
    huge, ram, absent = smaps.parse(TEXT.splitlines(), ranges)
    assert ram == RowUsage(12288, 4096, 8192, 12288, 0, 10240)
    assert huge == RowUsage(2 * MIB, 0, 2 * MIB, 0, 2 * MIB, 2 * MIB)
    assert absent == RowUsage()
    assert (ram + huge).resident == 12288 + 2 * MIB
    assert ram.describe()["swapped"] == 12288


@contextmanager
def child_that(work: str, fd: int) -> Iterator[int]:
    """A process that maps four pages of `fd` privately, touches them as `work` says, and waits."""
    ready, tell = os.pipe()
    ended, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        private = mmap.mmap(fd, 4 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        for page in range(4):
            private[page * PAGE]
        if work == "write one":
            private[PAGE] = 1
        os.write(tell, b"x")
        os.read(ended, 1)
        os._exit(0)
    os.close(ended)
    os.read(ready, 1)
    try:
        yield child
    finally:
        for descriptor in (ready, tell, end):
            os.close(descriptor)
        os.waitpid(child, 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"i" * 4 * PAGE)
    return path


def test_an_images_pages_are_shared_until_written(file: Path) -> None:
    with SlotTable(None) as table, file.open("rb") as opened:
        row = table.add(MIB, 4 * PAGE, Image(opened.fileno()), name="image")
        table.read(MIB, 4 * PAGE)
        [alone] = smaps.usage(os.getpid(), [(row.hva, row.size)])
        assert (alone.resident, alone.shared, alone.private) == (4 * PAGE, 0, 4 * PAGE)
        with child_that("read", opened.fileno()):
            [both] = smaps.usage(os.getpid(), [(row.hva, row.size)])
            assert (both.resident, both.shared, both.private) == (4 * PAGE, 4 * PAGE, 0)
            assert both.proportional == 2 * PAGE
            table.write(MIB + 2 * PAGE, b"mine")
            [wrote] = smaps.usage(os.getpid(), [(row.hva, row.size)])
            assert (wrote.resident, wrote.shared, wrote.private) == (4 * PAGE, 3 * PAGE, PAGE)


def test_another_process_is_looked_at(file: Path) -> None:
    with file.open("rb") as opened, child_that("write one", opened.fileno()) as child:
        lines = Path(f"/proc/{child}/maps").read_text().splitlines()
        start, end = (int(part, 16) for part in next(x for x in lines if str(file) in x).split()[0].split("-"))
        [usage] = smaps.usage(child, [(start, end - start)])
        assert usage.resident == 4 * PAGE


def test_rows_side_by_side_are_told_apart(file: Path) -> None:
    with SlotTable(None) as table:
        for number in range(5):
            table.add(MIB * (number + 1), MIB, Anonymous(), name=str(number))
            table.write(MIB * (number + 1), b"x" * PAGE * number)
        table.add(16 * MIB, 4 * PAGE, SharedFile(file), name="file")
        found = smaps.usage("self", [(row.hva, row.size) for row in table])
    assert [usage.resident for usage in found] == [0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 0]


def test_a_process_that_is_gone() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="No such"):
        smaps.usage(child, [(0, PAGE)])
