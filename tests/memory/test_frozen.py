"""A guest's memory in a file, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from hostd.memory import Anonymous, BackingError, RamFile, SlotError, SlotTable
from hostd.memory.frozen import copy_data, map_frozen, write_rows
from hostd.memory.layout import PAGE

SIZE = 64 * PAGE


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "memory").open("w+b", buffering=0) as opened:
        yield opened


def test_rows_are_copied_into_memory_that_others_see(file: IO[bytes]) -> None:
    with SlotTable(None) as first, SlotTable(None) as clone:
        own, ram = RamFile(2 * SIZE), RamFile(2 * SIZE)
        first.add(0, SIZE, own.at(0), name="low")
        first.add(SIZE, SIZE, own.at(SIZE), name="ram.0")
        first.write(5 * PAGE, b"one")
        first.write(SIZE + 7 * PAGE, b"two")
        rows = write_rows(first, file.fileno())
        map_frozen(clone, file.fileno(), rows, shared=ram.at)
        assert clone.read(0, 2 * SIZE) == first.read(0, 2 * SIZE)
        with SlotTable(None) as peer:
            peer.add(0, 2 * SIZE, ram.at(0), name="all")
            assert peer.read(SIZE + 7 * PAGE, 3) == b"two"
            clone.write(0, b"new")
            assert peer.read(0, 3) == b"new"
        assert first.read(0, 3) == bytes(3)
        own.close()
        ram.close()


def test_a_file_that_is_too_short_is_refused(file: IO[bytes]) -> None:
    with SlotTable(None) as first, SlotTable(None) as clone:
        first.add(0, SIZE, Anonymous(), name="low")
        rows = write_rows(first, file.fileno())
        file.truncate(SIZE - PAGE)
        with pytest.raises(SlotError, match=r"slot low: the template's memory has .* make the template again"):
            map_frozen(clone, file.fileno(), rows)


def test_only_data_is_copied_from_file_to_file(file: IO[bytes], tmp_path: Path) -> None:
    with (tmp_path / "other").open("w+b", buffering=0) as other:
        file.truncate(1 << 24)
        file.seek(3 << 20)
        file.write(b"here")
        other.truncate(1 << 25)
        copy_data(file.fileno(), 1 << 20, other.fileno(), 1 << 24, 4 << 20)
        other.seek((1 << 24) + (2 << 20))
        assert other.read(5) == b"here\0"
        assert other.seek(0, 2) == 1 << 25
        assert (tmp_path / "other").stat().st_blocks * 512 <= 64 << 10
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(BackingError, match="contents cannot be copied"):
        copy_data(file.fileno(), 0, full.fileno(), 0, 4 << 20)
