"""Writing where nobody may, and leaving no trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostd.memory import Anonymous, Image, RegionBacking, SharedFile, SlotError, SlotTable
from hostd.memory.patching import Patches, _is_file_page

PAGE = 4096
GPA = 0x100000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * (3 * PAGE // 256))
    return path


@pytest.mark.parametrize("access", ["ro", "rw"])
def test_a_page_is_the_files_again_when_it_is_as_it_was(table: SlotTable, file: Path, access: str) -> None:
    with file.open("rb") as opened:
        row = table.add(GPA, 3 * PAGE, Image(opened.fileno()), name="image", access=access)  # type: ignore[arg-type]
        patches = Patches(table)
        patches.write(GPA + PAGE + 5, b"\xcc")
        patches.write(GPA + 2 * PAGE, b"\xcc")
        assert table.read(GPA + PAGE + 4, 3) == b"\4\xcc\6"
        assert file.read_bytes()[PAGE + 5] == 5
        assert not _is_file_page(row.hva + PAGE)
        patches.write(GPA + PAGE + 5, b"\5")
        patches.give_back()
        assert table.read(GPA + PAGE, PAGE) == file.read_bytes()[PAGE : 2 * PAGE]
        assert _is_file_page(row.hva + PAGE)
        # The other one is not as it was, and stays.
        assert table.read(GPA + 2 * PAGE, 1) == b"\xcc"
        assert table.read(GPA, 1) == b"\0"


def test_what_was_the_guests_own_stays_so(table: SlotTable, file: Path) -> None:
    with file.open("rb") as opened:
        table.add(GPA, PAGE, Image(opened.fileno()), name="image")
        table.write(GPA + 8, b"mine")
        patches = Patches(table)
        patches.write(GPA, b"\xcc")
        patches.write(GPA, b"\0")
        patches.give_back()
        assert table.read(GPA + 8, 4) == b"mine"


def test_read_only_stays_read_only(table: SlotTable) -> None:
    row = table.add(GPA, PAGE, Anonymous(), name="rom", access="ro")
    Patches(table).write(GPA + 9, b"x")
    assert table.read(GPA + 9, 1) == b"x"
    with pytest.raises(SlotError, match="read-only"):
        table.write(GPA, b"y")
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert next(line for line in maps if line.startswith(f"{row.hva:x}-")).split()[1] == "r--p"


def test_what_others_share_is_not_written_to(table: SlotTable, file: Path) -> None:
    table.add(GPA, PAGE, SharedFile(file), name="shared", access="ro")
    with pytest.raises(SlotError, match="shared at 0x100000 is shared read-only"):
        Patches(table).write(GPA, b"x")
    assert file.read_bytes()[0] == 0
    fd = os.memfd_create("region")
    os.ftruncate(fd, PAGE)
    table.add(GPA + PAGE, PAGE, RegionBacking(fd), name="region")
    Patches(table).write(GPA + PAGE, b"x")
    assert os.pread(fd, 1, 0) == b"x"
    os.close(fd)


def test_where_nothing_is(table: SlotTable) -> None:
    table.add(GPA, PAGE, Anonymous(), name="ram")
    with pytest.raises(SlotError, match="no memory is there"):
        Patches(table).write(GPA + PAGE - 1, b"xy")
    with pytest.raises(SlotError, match="no memory is there"):
        Patches(table).write(0, b"x")
