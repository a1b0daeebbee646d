"""The slot table without a guest: what it takes and refuses, reading and writing by guest address."""

from __future__ import annotations

import gc
import os
import re
import threading
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.memory import Anonymous, Hugetlb, SharedFile, SlotError, SlotTable
from hostd.memory._map import ffi, lib
from hostd.memory.layout import ADDRESS_LIMIT, MMIO_HOLE, PAGE, ROM_AREA, VGA_HOLE

MIB = 1 << 20


@pytest.mark.parametrize(
    ("gpa", "size", "sentence"),
    [
        (0x1000, 0, r"slot x at 0x1000: its size is 0; a row has at least one page of 4096 bytes"),
        (0x1000, -4096, r"its size is -4096"),
        (
            0x1001,
            4096,
            r"slot x at 0x1001: its address and its size \(4096\) must be multiples of 4096 bytes",
        ),
        (0x1000, 4097, r"its size \(4097\) must be multiples"),
        (-4096, 4096, r"must be multiples"),
        (
            VGA_HOLE.start - PAGE,
            2 * PAGE,
            r"reach into the VGA hole \(0xa0000 to 0x100000\), which is never memory",
        ),
        (VGA_HOLE.stop - PAGE, PAGE, r"VGA hole"),
        (0, 2 * MIB, r"VGA hole"),
        (MMIO_HOLE.start, PAGE, r"MMIO hole \(0xc0000000 to 0x100000000\)"),
        (MIB, 8 << 30, r"MMIO hole"),
        (1 << 32, 1 << 60, r"more than KVM gives one slot"),
        (ADDRESS_LIMIT - PAGE, 2 * PAGE, r"above the last guest physical address 0xfffffffffffff"),
    ],
)
def test_a_row_that_cannot_be(table: SlotTable, gpa: int, size: int, sentence: str) -> None:
    with pytest.raises(SlotError, match=sentence):
        table.add(gpa, size, Anonymous(), name="x")
    assert len(table) == 0


def test_firmwares_place_takes_read_only_rows_alone(table: SlotTable) -> None:
    table.add(ROM_AREA.start, len(ROM_AREA) - PAGE, Anonymous(), name="rom", access="ro")
    with pytest.raises(SlotError, match="VGA hole"):
        table.add(ROM_AREA.stop - PAGE, PAGE, Anonymous(), name="ram")
    with pytest.raises(SlotError, match="VGA hole"):
        table.add(ROM_AREA.stop - PAGE, 2 * PAGE, Anonymous(), name="rom", access="ro")
    with pytest.raises(SlotError, match="VGA hole"):
        table.add(ROM_AREA.start - PAGE, PAGE, Anonymous(), name="rom", access="ro")


def test_rows_may_touch_the_holes(table: SlotTable) -> None:
    table.add(0, VGA_HOLE.start, Anonymous(), name="low")
    table.add(VGA_HOLE.stop, MMIO_HOLE.start - VGA_HOLE.stop, Anonymous(), name="below")
    table.add(MMIO_HOLE.stop, MIB, Anonymous(), name="above")
    assert [row.name for row in table] == ["low", "below", "above"]


def test_overlap_names_both(table: SlotTable) -> None:
    table.add(MIB, MIB, Anonymous(), name="ram")
    with pytest.raises(
        SlotError, match=r"slot net at 0x1ff000: its 8192 bytes overlap slot ram \(0x100000 to 0x200000\)"
    ):
        table.add(2 * MIB - PAGE, 2 * PAGE, Anonymous(), name="net")


def test_unknown_access(table: SlotTable) -> None:
    access: Any = "rwx"
    with pytest.raises(SlotError, match=r"""its access is 'rwx'; it can be "rw" or "ro\""""):
        table.add(MIB, MIB, Anonymous(), name="ram", access=access)


def test_huge_rows_are_aligned_to_huge_pages(table: SlotTable) -> None:
    with pytest.raises(SlotError, match=r"multiples of 2097152 bytes"):
        table.add(MIB, 2 * MIB, Hugetlb(), name="huge")


def test_remove_and_its_errors(table: SlotTable) -> None:
    row = table.add(MIB, MIB, Anonymous(), name="ram")
    table.remove(row)
    assert table.find(MIB) is None
    with pytest.raises(SlotError, match="slot ram at 0x100000 is not in the table"):
        table.remove(row)
    table.add(MIB, 2 * MIB, Anonymous(), name="again")


def test_slot_numbers_are_used_again(table: SlotTable) -> None:
    rows = [table.add(MIB * (i + 1), MIB, Anonymous(), name=str(i)) for i in range(4)]
    table.remove(rows[1])
    assert table.add(16 * MIB, MIB, Anonymous(), name="new").index == rows[1].index


def test_read_write_and_view(table: SlotTable) -> None:
    table.add(MIB, MIB, Anonymous(), name="a")
    table.add(2 * MIB, MIB, Anonymous(), name="b")
    table.write(2 * MIB - 3, b"across")
    assert table.read(2 * MIB - 3, 6) == b"across"
    view = table.view(2 * MIB, 3)
    assert bytes(view) == b"oss"
    view[0] = ord("O")
    assert table.read(2 * MIB - 3, 6) == b"acrOss"
    with pytest.raises(SlotError, match=r"guest address 0x1ffffd: 6 bytes there are not all in slot a"):
        table.view(2 * MIB - 3, 6)
    with pytest.raises(SlotError, match=r"guest address 0x300000 is in no slot \(1 more bytes"):
        table.read(3 * MIB - 1, 2)
    with pytest.raises(SlotError, match=r"in no slot"):
        table.write(3 * MIB - 1, b"ab")
    assert table.read(3 * MIB - 1, 1) == b"\0", "all or nothing"


def test_read_only_rows_refuse_the_host_too(table: SlotTable, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"x" * PAGE)
    table.add(MIB, PAGE, SharedFile(file), name="text", access="ro")
    with pytest.raises(SlotError, match="slot text at 0x100000 is read-only"):
        table.write(MIB, b"y")
    with pytest.raises(SlotError, match="read-only"):
        table.view(MIB, 1)
    view = table.view(MIB, 4, writable=False)
    assert view.readonly
    assert bytes(view) == b"xxxx"


def test_numpy_works_on_guest_memory(table: SlotTable) -> None:
    table.add(MIB, MIB, Anonymous(), name="ram")
    numbers = np.frombuffer(table.view(MIB + PAGE, 800), dtype=np.uint64)
    numbers[:] = np.arange(100)
    assert table.read(MIB + PAGE + 8 * 99, 8) == (99).to_bytes(8, "little")


def test_a_view_outlives_its_row(table: SlotTable) -> None:
    row = table.add(MIB, MIB, Anonymous(), name="ram")
    view = table.view(MIB, 16)
    address, size = row.hva, row.size
    table.remove(row)
    del row
    gc.collect()
    view[:5] = b"still"
    assert bytes(view[:5]) == b"still"
    assert _mapped(address, size)
    view.release()
    del view
    gc.collect()
    assert not _mapped(address, size)


def test_guards_lie_around_every_row(table: SlotTable) -> None:
    row = table.add(MIB, MIB, Anonymous(), name="ram")
    maps = Path("/proc/self/maps").read_text()
    assert re.search(rf"^[0-9a-f]+-{row.hva:x} ---p", maps, re.MULTILINE)
    assert re.search(rf"^{row.hva + row.size:x}-[0-9a-f]+ ---p", maps, re.MULTILINE)


def _mapped(address: int, size: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start < address + size and address < end and " rw-p " in line:
            return True
    return False


def test_a_row_describes_itself_in_plain_values(table: SlotTable, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"x" * 5000)
    with file.open("rb") as opened:
        row = table.add(MIB, 2 * PAGE, SharedFile(opened.fileno()), name="text", access="ro", thp=False)
        plain = row.describe()
    assert msgpack.unpackb(msgpack.packb(plain)) == plain
    assert plain == {
        "name": "text",
        "gpa": MIB,
        "size": 2 * PAGE,
        "access": "ro",
        "hva": row.hva,
        "slot": 0,
        "options": {"lock": False, "prefault": False, "mergeable": False, "thp": False},
        "backing": "file",
        "source": str(file),
        "offset": 0,
    }


def test_nothing_stays_open_or_mapped(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"x" * PAGE)
    files = len(os.listdir("/proc/self/fd"))
    with SlotTable(None) as table:
        table.add(MIB, PAGE, SharedFile(file), name="text")
        table.add(2 * MIB, MIB, Anonymous(), name="ram")
        assert len(os.listdir("/proc/self/fd")) == files
    assert str(file) not in Path("/proc/self/maps").read_text()


# --- against a model ----------------------------------------------------------------------------------------

ADDRESSES = st.one_of(
    st.integers(0, 12).map(lambda n: n * 0x40000),
    st.sampled_from([VGA_HOLE.start, VGA_HOLE.stop, MMIO_HOLE.start, MMIO_HOLE.stop, ADDRESS_LIMIT]).flatmap(
        lambda edge: st.integers(-3, 3).map(lambda n: edge + n * PAGE)
    ),
    st.integers(-PAGE, 4 * MIB),
)
SIZES = st.one_of(
    st.integers(0, 8).map(lambda n: n * 0x20000),
    st.integers(-1, 3).map(lambda n: n * PAGE),
    st.integers(0, MIB),
)
STEPS = st.lists(st.tuples(st.booleans(), ADDRESSES, SIZES), max_size=25)


def _allowed(rows: dict[int, int], gpa: int, size: int) -> bool:
    """The rule, said as plainly as can be: page by page."""
    if size <= 0 or gpa < 0 or gpa % PAGE or size % PAGE or gpa + size > ADDRESS_LIMIT:
        return False
    taken = {page for start, length in rows.items() for page in range(start, start + length, PAGE)}
    pages = range(gpa, gpa + size, PAGE)
    return not any(page in taken or page in VGA_HOLE or page in MMIO_HOLE for page in pages)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_the_table_agrees_with_a_simple_model(steps: list[tuple[bool, int, int]]) -> None:
    rows: dict[int, int] = {}
    with SlotTable(None) as table:
        for remove, gpa, size in steps:
            held = table.find(gpa)
            if remove and held is not None:
                table.remove(held)
                del rows[held.gpa]
                continue
            if _allowed(rows, gpa, size):
                table.add(gpa, size, Anonymous(), name=f"{gpa:#x}")
                rows[gpa] = size
            else:
                with pytest.raises(SlotError):
                    table.add(gpa, size, Anonymous(), name="x")
            assert [(row.gpa, row.size) for row in table] == sorted(rows.items())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True),
    st.integers(0, 1 << 64) | st.integers(0, 50 * MIB),
    st.integers(0, 1 << 64) | st.integers(0, 3 * MIB),
    st.booleans(),
)
def test_c_finds_exactly_what_one_row_holds(places: list[int], gpa: int, size: int, write: bool) -> None:
    """slot_hva, the one way from a guest address to a pointer, with any numbers a guest may give."""
    gpa, size = min(gpa, (1 << 64) - 1), min(size, (1 << 64) - 1)
    with SlotTable(None) as table:
        for place in places:
            table.add(place * MIB, MIB, Anonymous(), name=str(place), access="ro" if place % 3 == 0 else "rw")
        row = table.find(gpa)
        expected = 0
        if row is not None and gpa + size <= row.end and (row.writable or not write):
            expected = row.hva + gpa - row.gpa
        rows = ffi.cast("struct slot_rows *", table.c_rows)
        assert lib.rows_hva(rows, gpa, size, write) == expected


def test_c_looks_up_while_rows_come_and_go(table: SlotTable) -> None:
    """Readers in C, without the GIL, see a row whole or not at all."""
    rows = ffi.cast("struct slot_rows *", table.c_rows)
    fixed = table.add(32 * MIB, MIB, Anonymous(), name="fixed")
    wrong: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = lib.rows_hva(rows, fixed.gpa + 5, 10, True)
            if found != fixed.hva + 5:
                wrong.append(found)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        added = [table.add(MIB * place, MIB, Anonymous(), name="x") for place in (0x2000, 1 + turn % 7, 8, 9)]
        for row in added:
            table.remove(row)
    ended.set()
    for reader in readers:
        reader.join()
    assert wrong == []
