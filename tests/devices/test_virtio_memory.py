"""virtio-rng, virtio-pmem and virtio-balloon."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import DATA, GIB, LOW, NEEDS_RESET, ROW, Driver, bench, messages

from hostd.devices.machine import DeviceError, Machine
from hostd.devices.virtio import Balloon, add_balloon, add_pmem, add_rng
from hostd.memory import Image, SharedFile, SlotTable

PAGE = 4096
MIB = 1 << 20
INFLATE, DEFLATE, STATS, REPORT = 0, 1, 2, 4
STATS_VQ, DEFLATE_ON_OOM, REPORTING = 1, 2, 5


def test_rng_fills_what_it_is_given() -> None:
    with bench() as (machine, table):
        driver = Driver(machine, table, (rng := add_rng(machine)).slot)
        driver.open()
        assert driver.ask(0, (DATA, 100, True), (ROW - 50, 100, True)) == 200
        first, second = table.read(DATA, 100), table.read(ROW - 50, 100)
        assert first != second
        assert bytes(10) not in (first[-10:], second[-10:])
        assert driver.ask(0, (DATA, 10000, True)) == 4096
        assert rng.describe()["bytes"] == 4296


# --- pmem ---------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"A" * PAGE + b"B" * PAGE + b"C" * 10)
    return path


@pytest.mark.parametrize("access", ["ro", "private", "shared"])
def test_pmem_shows_the_file(image: Path, access: str) -> None:
    with bench() as (machine, table):
        pmem = add_pmem(machine, table, image, access, gpa=64 * GIB)  # type: ignore[arg-type]
        driver = Driver(machine, table, pmem.slot)
        driver.open()
        assert (driver.device(0, 8), driver.device(8, 8)) == (64 * GIB, 2 * MIB)
        assert table.read(64 * GIB, 2 * PAGE + 11) == b"A" * PAGE + b"B" * PAGE + b"C" * 10 + b"\0"
        assert table.read(64 * GIB + 2 * MIB - 1, 1) == b"\0"
        writable = {row.name: row.writable for row in table if row.name.startswith("pmem")}
        assert writable == dict.fromkeys(("pmem", "pmem.pad"), access != "ro")
        table.write(DATA, bytes(4))
        assert driver.ask(0, (DATA, 4, False), (DATA + 4, 4, True)) == 4
        assert table.read(DATA + 4, 4) == bytes(4)
        described = pmem.describe()
        assert (described["access"], described["gpa"], described["flushes"]) == (access, "0x1000000000", 1)


def test_pmem_writes(image: Path) -> None:
    before = image.read_bytes()
    with bench() as (machine, table):
        add_pmem(machine, table, image, "private", gpa=64 * GIB, name="private")
        add_pmem(machine, table, image, "shared", gpa=65 * GIB, name="shared")
        table.write(64 * GIB + 5, b"mine")
        assert image.read_bytes() == before
        table.write(65 * GIB + PAGE, b"ours")
        assert image.read_bytes()[PAGE : PAGE + 4] == b"ours"
        # A page the guest has not written is still the file's.
        assert table.read(64 * GIB + PAGE, 4) == b"ours"
        assert table.read(64 * GIB + 5, 4) == b"mine"
        # Behind the file's end nothing reaches it.
        table.write(65 * GIB + 3 * PAGE, b"padding")
    assert len(image.read_bytes()) == len(before)


def test_pmem_refuses_what_it_does_not_know(image: Path) -> None:
    with bench() as (machine, table):
        driver = Driver(machine, table, (pmem := add_pmem(machine, table, image, gpa=64 * GIB)).slot)
        driver.open()
        table.write(DATA, struct.pack("<I", 7))
        assert driver.ask(0, (DATA, 4, False), (DATA + 4, 4, True)) == 4
        assert table.read(DATA + 4, 4) == b"\xff" * 4
        assert driver.ask(0, (DATA, 3, False), (DATA + 4, 4, True)) == 4
        assert pmem.describe()["failed"] == 2
        driver.post(0, (DATA, 4, False), (DATA + 4, 3, True))
        driver.kick(0)
        driver.serve()
        assert driver.status & NEEDS_RESET


def test_pmem_flush_that_fails(image: Path) -> None:
    """A pipe has pages for nobody and can't be flushed: the guest is told."""
    with bench() as (machine, table):
        pmem = add_pmem(machine, table, image, "shared", gpa=64 * GIB)
        driver = Driver(machine, table, pmem.slot)
        driver.open()
        flushed = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _is(fd, image)]
        reading, writing = os.pipe()
        for fd in flushed:
            os.dup2(writing, fd)
        table.write(DATA, bytes(4))
        assert driver.ask(0, (DATA, 4, False), (DATA + 4, 4, True)) == 4
        assert table.read(DATA + 4, 4) == b"\xff" * 4
        os.close(reading)
        os.close(writing)


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def test_pmem_that_cannot_be(image: Path, tmp_path: Path) -> None:
    with bench() as (machine, table):
        empty = tmp_path / "empty"
        empty.touch()
        for file, gpa, what in (
            (image, 64 * GIB + PAGE, "no multiple of 0x200000"),
            (empty, 64 * GIB, "is empty"),
            (tmp_path / "none", 64 * GIB, "cannot be opened for reading"),
        ):
            with pytest.raises(DeviceError, match=what):
                add_pmem(machine, table, file, gpa=gpa)
        add_pmem(machine, table, image, gpa=64 * GIB)
        rows = len(table)
        with pytest.raises(ValueError, match="overlap slot pmem"):
            add_pmem(machine, table, image, gpa=64 * GIB)
        assert len(table) == rows


# --- balloon ------------------------------------------------------------------------------------------------


class Inflatable:
    def __init__(self, machine: Machine, table: SlotTable) -> None:
        self.balloon: Balloon = add_balloon(machine, table)
        self.machine, self.table = machine, table
        self.driver = Driver(machine, table, self.balloon.slot)

    def pages(self, queue: int, *pages: int) -> None:
        self.table.write(0x30000, struct.pack(f"<{len(pages)}I", *pages))
        assert self.driver.ask(queue, (0x30000, 4 * len(pages), False)) == 0

    def resident(self, page: int) -> bool:
        """Whether the host has a page there: the balloon's way of giving it back leaves zeros."""
        return self.table.read(page * PAGE, 1) != b"\0"

    def fill(self, first: int, count: int) -> None:
        self.table.write(first * PAGE, b"x" * count * PAGE)


@pytest.fixture
def inflatable(tmp_path: Path) -> Iterator[Inflatable]:
    with bench() as (machine, table):
        file = tmp_path / "shared"
        file.write_bytes(b"s" * 16 * PAGE)
        table.add(1 << 32, 16 * PAGE, SharedFile(file), name="region")
        yield Inflatable(machine, table)


def test_balloon_takes_pages_out_of_memory(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    assert b.driver.has(STATS_VQ)
    assert b.driver.has(REPORTING)
    assert b.driver.has(DEFLATE_ON_OOM)
    b.fill(100, 20)
    b.pages(INFLATE, 100, 101, 102, 110, 109, 108, 119)
    gone = {100, 101, 102, 108, 109, 110, 119}
    assert {page for page in range(100, 120) if not b.resident(page)} == gone
    b.pages(DEFLATE, 100, 101)
    b.fill(100, 1)
    assert b.resident(100)
    described = b.balloon.describe()
    assert (described["inflated"], described["deflated"]) == (7, 2)
    assert (described["released"], described["refused"]) == (7 * PAGE, 0)


def test_balloon_across_rows(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    border = ROW // PAGE
    b.fill(border - 2, 4)
    b.pages(INFLATE, border - 2, border - 1, border, border + 1)
    assert not any(b.resident(page) for page in range(border - 2, border + 2))
    assert b.balloon.describe()["released"] == 4 * PAGE


def test_balloon_leaves_alone_what_is_not_anonymous(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    shared = (1 << 32) // PAGE
    b.pages(INFLATE, shared, shared + 1, LOW // PAGE, 0xFFFFFFFF, 0xFFFFFFFE)
    assert b.resident(shared)
    described = b.balloon.describe()
    assert (described["released"], described["refused"]) == (0, 5 * PAGE)


@pytest.mark.parametrize("clone", [False, True])
def test_balloon_of_a_clone_gives_back_what_it_wrote(tmp_path: Path, clone: bool) -> None:
    file = tmp_path / "template"
    file.write_bytes(b"t" * 4 * PAGE)
    with bench() as (machine, table):
        table.add(1 << 32, 4 * PAGE, Image(file), name="ram")
        balloon = add_balloon(machine, table, clone=clone)
        driver = Driver(machine, table, balloon.slot)
        driver.open()
        table.write(1 << 32, b"own!" * PAGE)
        driver.ask(REPORT, ((1 << 32) + PAGE, 2 * PAGE, True))
        kept = b"own!" if not clone else b"tttt"
        assert [table.read((1 << 32) + page * PAGE, 4) for page in range(4)] == [b"own!", kept, kept, b"own!"]
        assert balloon.describe()["released"] == (2 * PAGE if clone else 0)


@pytest.mark.parametrize("queue", [3, 4])
def test_balloon_free_page_reporting(inflatable: Inflatable, queue: int) -> None:
    b = inflatable
    b.driver.open()
    b.fill(100, 8)
    shared = (1 << 32) + PAGE
    assert b.driver.ask(queue, (100 * PAGE, 4 * PAGE, True), (106 * PAGE, PAGE, True), (shared, PAGE, True)) == 0
    assert [page for page in range(100, 108) if b.resident(page)] == [104, 105, 107]
    assert b.resident(shared // PAGE)
    described = b.balloon.describe()
    assert (described["reported"], described["released"]) == (6 * PAGE, 5 * PAGE)


def test_balloon_reporting_of_parts_of_pages(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    b.fill(100, 4)
    b.driver.ask(REPORT, (100 * PAGE + 1, 2 * PAGE, True))
    assert [page for page in range(100, 104) if b.resident(page)] == [100, 102, 103]


def test_balloon_without_statistics_reports_on_the_next_queue(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open(~(1 << STATS_VQ))
    b.fill(100, 1)
    b.driver.ask(2, (100 * PAGE, PAGE, True))
    assert not b.resident(100)


def test_balloon_target(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    assert b.driver.device(0, 4) == 0
    b.balloon.set_target(3 * PAGE + 1)
    assert b.driver.device(0, 4) == 3
    assert messages(b.machine)[-1] == ("line", 16 + b.balloon.slot % 8, 1)
    b.driver.device(4, 4, 2)
    assert b.balloon.actual == 2 * PAGE
    assert b.balloon.describe()["target"] == 3 * PAGE + 1
    b.driver.status = 0
    assert b.balloon.actual == 0
    with pytest.raises(DeviceError, match="cannot be in it"):
        b.balloon.set_target(-1)


def _statistics(b: Inflatable, *entries: tuple[int, int]) -> None:
    data = b"".join(struct.pack("<HQ", *entry) for entry in entries)
    b.table.write(0x30000, data)
    b.driver.post(STATS, (0x30000, len(data), False))
    b.driver.kick(STATS)
    b.driver.serve()


def test_balloon_statistics(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    assert b.balloon.statistics(timeout=0) == {}
    _statistics(b, (4, 1000), (5, 2000))
    assert b.driver.used(STATS) == []  # It stays with the device until that wants new ones.
    answered = threading.Event()

    def answer() -> None:
        while not b.driver.used(STATS):
            answered.wait(0.001)
        _statistics(b, (4, 900), (77, 1), (0xFFFF, 1), (6, 12))
        answered.set()

    thread = threading.Thread(target=answer)
    thread.start()
    assert b.balloon.statistics(timeout=10) == {"free": 900, "total": 2000, "available": 12}
    thread.join()
    assert answered.is_set()


def test_balloon_statistics_without_an_answer(inflatable: Inflatable) -> None:
    b = inflatable
    b.driver.open()
    _statistics(b, (0, 1))
    assert b.balloon.statistics(timeout=0.01) == {"swap_in": 1}
    assert len(b.driver.used(STATS)) == 1
    assert b.balloon.statistics(timeout=0.01) == {"swap_in": 1}
    assert b.driver.used(STATS) == []


@settings(max_examples=100, deadline=None)
@given(pages=st.lists(st.one_of(st.integers(100, 159), st.integers(0, 2**32 - 1)), max_size=400))
def test_balloon_gives_back_these_pages_and_no_others(pages: list[int]) -> None:
    with bench() as (machine, table):
        b = Inflatable(machine, table)
        b.driver.open()
        pages = [page for page in pages if page >= 100]  # Below are the rings.
        table.write(100 * PAGE, b"x" * (LOW - 100 * PAGE))
        at = 0x20000
        table.write(at, struct.pack(f"<{len(pages)}I", *pages))
        assert b.driver.ask(INFLATE, (at, 4 * len(pages), False)) == 0
        named = set(pages)
        for page in range(100, LOW // PAGE):
            assert b.resident(page) == (page not in named)
