"""virtio-blk: requests, the private overlay, and a file that fails."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import DATA, ROW, VERSION_1, Driver, bench

from hostd.devices.machine import DeviceError
from hostd.devices.virtio import Blk, add_blk

SECTOR = 512
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
RO, BLK_SIZE, F_FLUSH, F_DISCARD = 5, 6, 9, 13
STATUS = DATA - 1
CONTENT = bytes(i * 7 % 251 for i in range(64 * SECTOR))


class Disk:
    """A disk behind its driver."""

    def __init__(self, driver: Driver, blk: Blk, path: Path) -> None:
        self.driver, self.blk, self.path = driver, blk, path

    def request(self, kind: int, sector: int, *data: tuple[int, int, bool], **how: Any) -> int:
        """Do a request and return its status."""
        self.driver.table.write(DATA - 64, struct.pack("<IIQ", kind, 0, sector))
        self.driver.table.write(STATUS, b"\xff")
        written = self.driver.ask(0, (DATA - 64, 16, False), *data, (STATUS, 1, True), **how)
        assert written == 1 + sum(size for _, size, write in data if write)
        return self.driver.table.read(STATUS, 1)[0]

    def read(self, sector: int, count: int) -> bytes:
        assert self.request(IN, sector, (DATA, count * SECTOR, True)) == OK
        return self.driver.table.read(DATA, count * SECTOR)

    def write(self, sector: int, data: bytes) -> int:
        self.driver.table.write(DATA, data)
        return self.request(OUT, sector, (DATA, len(data), False))

    def zero(self, kind: int, *segments: tuple[int, int, int]) -> int:
        data = b"".join(struct.pack("<QII", *segment) for segment in segments)
        self.driver.table.write(DATA, data)
        return self.request(kind, 0, (DATA, len(data), False))


Open = Callable[..., Disk]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Open]:
    """Open a disk of CONTENT with an access; served in this thread."""
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with bench() as (machine, table):

        def opened(access: str, features: int = ~0, **options: Any) -> Disk:
            blk = add_blk(machine, path, access, own_thread=False, **options)  # type: ignore[arg-type]
            driver = Driver(machine, table, blk.slot)
            assert driver.open(features) == 0xF
            return Disk(driver, blk, path)

        yield opened


@pytest.mark.parametrize("access", ["ro", "shared", "private"])
def test_configuration(disk: Open, access: str) -> None:
    d = disk(access, serial="serial-12345678901")
    assert d.driver.device(0, 8) == 64
    assert d.driver.device(12, 4) == 254
    assert d.driver.device(20, 4) == SECTOR
    assert d.driver.has(RO) == (access == "ro")
    assert d.driver.has(F_DISCARD) == (access != "ro")
    assert d.driver.has(F_FLUSH)
    assert d.request(GET_ID, 0, (DATA, 20, True)) == OK
    assert d.driver.table.read(DATA, 20) == b"serial-12345678901\0\0"


@pytest.mark.parametrize("access", ["ro", "shared", "private"])
def test_reading(disk: Open, access: str) -> None:
    d = disk(access)
    assert d.read(0, 64) == CONTENT
    assert d.read(63, 1) == CONTENT[-SECTOR:]


def test_read_only(disk: Open) -> None:
    d = disk("ro")
    assert d.write(0, bytes(SECTOR)) == IOERR
    assert d.zero(DISCARD, (0, 1, 0)) == IOERR
    assert d.request(FLUSH, 0) == OK
    assert d.path.read_bytes() == CONTENT


def test_shared_writes_reach_the_file(disk: Open) -> None:
    d = disk("shared")
    assert d.write(3, b"x" * SECTOR) == OK
    assert d.request(FLUSH, 0) == OK
    assert d.path.read_bytes()[3 * SECTOR : 4 * SECTOR] == b"x" * SECTOR
    assert d.blk.describe()["written_bytes"] == SECTOR


def test_without_flush_writes_are_durable(disk: Open) -> None:
    d = disk("shared", 1 << VERSION_1)
    assert d.write(3, b"y" * SECTOR) == OK
    assert d.read(3, 1) == b"y" * SECTOR


@pytest.mark.parametrize("folder", [True, False])
def test_private_writes_do_not(disk: Open, tmp_path: Path, folder: bool) -> None:
    d = disk("private", overlay=tmp_path if folder else None)
    assert d.write(3, b"x" * SECTOR * 2) == OK
    assert d.request(FLUSH, 0) == OK
    assert d.read(0, 64) == CONTENT[: 3 * SECTOR] + b"x" * SECTOR * 2 + CONTENT[5 * SECTOR :]
    assert d.path.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


@pytest.mark.parametrize("access", ["shared", "private"])
@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_zeros(disk: Open, access: str, kind: int) -> None:
    d = disk(access)
    assert d.zero(kind, (1, 2, 0), (8, 1, int(kind == WRITE_ZEROES))) == OK
    zeros = bytearray(CONTENT)
    zeros[SECTOR : 3 * SECTOR] = bytes(2 * SECTOR)
    zeros[8 * SECTOR : 9 * SECTOR] = bytes(SECTOR)
    assert d.read(0, 64) == zeros
    assert d.path.read_bytes() == (zeros if access == "shared" else CONTENT)


@pytest.mark.parametrize("segment", [(0, 1, 2), (0, 1, 1 << 31)])
def test_unknown_flags_of_zeros(disk: Open, segment: tuple[int, int, int]) -> None:
    d = disk("shared")
    assert d.zero(WRITE_ZEROES, segment) == UNSUPP
    assert d.zero(DISCARD, (0, 1, 1)) == UNSUPP
    assert d.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("kind", "sector", "size"),
    [
        (IN, 64, 512),
        (IN, 63, 1024),
        (IN, 1 << 63, 512),
        (IN, (1 << 64) - 1, 512),
        (IN, 0, 511),
        (OUT, 64, 512),
        (OUT, 0, 513),
    ],
)
def test_outside_of_the_disk(disk: Open, kind: int, sector: int, size: int) -> None:
    d = disk("shared")
    assert d.request(kind, sector, (DATA, size, kind == IN)) == IOERR
    assert d.path.read_bytes() == CONTENT


@pytest.mark.parametrize("segments", [[(63, 2, 0)], [(1 << 63, 1, 0)], [(0, 1 << 31, 0)], [(0, 1, 0)] * 17, []])
def test_zeros_outside_of_the_disk(disk: Open, segments: list[tuple[int, int, int]]) -> None:
    d = disk("shared")
    assert d.zero(WRITE_ZEROES, *segments) == IOERR
    assert d.path.read_bytes() == CONTENT


def test_unknown_requests(disk: Open) -> None:
    d = disk("shared")
    for kind in (2, 3, 5, 10, 14, 0x80000000, 0xFFFFFFFF):
        assert d.request(kind, 0, (DATA, SECTOR, True)) == UNSUPP
    assert d.read(0, 1) == CONTENT[:SECTOR]


def test_a_short_header(disk: Open) -> None:
    d = disk("shared")
    assert d.driver.ask(0, (DATA, 15, False), (STATUS, 1, True)) == 1
    assert d.driver.table.read(STATUS, 1)[0] == IOERR


def test_no_room_for_a_status_breaks_it(disk: Open) -> None:
    d = disk("shared")
    d.driver.post(0, (DATA, 16, False))
    d.driver.kick(0)
    d.driver.serve()
    assert "no room" in str(d.blk.describe()["broken"])


def test_any_layout_of_a_request(disk: Open) -> None:
    """2.7.4: header, data and status may be cut into descriptors anywhere, also across rows of memory."""
    d = disk("private")
    table = d.driver.table
    at = ROW - 700
    table.write(at, struct.pack("<IIQ", IN, 0, 2))
    pieces = [(at, 3, False), (at + 3, 13, False), (at + 16, 100, True), (at + 116, 1000, True), (at + 1116, 437, True)]
    assert d.driver.ask(0, *pieces, indirect=DATA) == 3 * SECTOR + 1
    assert table.read(at + 16, 3 * SECTOR + 1) == CONTENT[2 * SECTOR : 5 * SECTOR] + b"\0"


@pytest.mark.parametrize("access", ["shared", "private"])
def test_a_file_cut_short_is_an_error_of_the_disk(disk: Open, access: str) -> None:
    d = disk(access)
    os.truncate(d.path, 10 * SECTOR + 100)
    assert d.read(9, 1) == CONTENT[9 * SECTOR : 10 * SECTOR]
    for sector in (10, 11, 63):
        assert d.request(IN, sector, (DATA, SECTOR, True)) == IOERR
    if access == "private":
        assert d.write(20, b"z" * SECTOR) == OK
        assert d.read(20, 1) == b"z" * SECTOR
    assert d.blk.describe()["failed"] == 3


def test_a_file_that_refuses_writes_is_an_error_of_the_disk() -> None:
    with bench() as (machine, table):
        fd = os.memfd_create("disk", os.MFD_ALLOW_SEALING)
        os.write(fd, CONTENT)
        blk = add_blk(machine, fd, "shared", own_thread=False)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(fd)
        driver = Driver(machine, table, blk.slot)
        driver.open()
        d = Disk(driver, blk, Path())
        assert d.write(1, bytes(SECTOR)) == IOERR
        assert d.zero(DISCARD, (1, 1, 0)) == IOERR
        assert d.read(0, 64) == CONTENT


def test_a_served_request_ends_before_a_reset(disk: Open) -> None:
    """A reset from another thread, in the middle of requests: each was done or never begun, the device goes on."""
    d = disk("shared")
    for _ in range(20):
        d.driver.open(size=128)
        for number in range(30):
            d.driver.table.write(DATA - 64, struct.pack("<IIQ", IN, 0, 0))
            d.driver.post(0, (DATA - 64, 16, False), (DATA + number * SECTOR, SECTOR, True), (STATUS, 1, True))
        d.driver.kick(0)
        thread = threading.Thread(target=d.driver.serve)
        thread.start()
        d.driver.status = 0
        assert d.driver.status == 0
        used = d.driver.used(0)
        thread.join()
        assert d.driver.used(0) == []
        assert all(written == SECTOR + 1 for _, written in used)
    d.driver.open()
    assert d.read(0, 64) == CONTENT


def test_a_thread_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with bench() as (machine, table):
        blk = add_blk(machine, path, "private")
        machine.start()
        driver = Driver(machine, table, blk.slot)
        driver.open()
        table.write(DATA, struct.pack("<IIQ", IN, 0, 5))
        table.write(STATUS, b"\xff")
        driver.post(0, (DATA, 16, False), (DATA + SECTOR, SECTOR, True), (STATUS, 1, True))
        driver.kick(0)
        done = threading.Event()
        while not (used := driver.used(0)):
            done.wait(0.001)
        assert used == [(0, SECTOR + 1)]
        assert table.read(DATA + SECTOR, SECTOR) == CONTENT[5 * SECTOR : 6 * SECTOR]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"access": "rw"}, 'its access is \'rw\'; it can be "ro", "shared" or "private"'),
        ({"serial": "s" * 21}, "has more than 20 bytes"),
        ({"block_size": 513}, "513 is none of"),
        ({"access": "private", "overlay": "/nowhere"}, "no overlay can be made in /nowhere: no such file or directory"),
        ({"file": "/dev/null"}, "/dev/null holds no whole block"),
        ({"file": "/nowhere"}, "/nowhere cannot be opened for reading: no such file or directory"),
    ],
)
def test_what_cannot_be(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    before = len(os.listdir("/proc/self/fd"))
    with bench() as (machine, _):
        inside = len(os.listdir("/proc/self/fd"))
        with pytest.raises(DeviceError, match=what):
            add_blk(machine, **{"file": path, "access": "ro", **options})  # type: ignore[arg-type]
        assert len(os.listdir("/proc/self/fd")) == inside
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["read", "write", "zero"]), st.integers(0, 199), st.integers(1, 80), st.integers(0, 255)
        ),
        max_size=25,
    )
)
def test_an_overlay_is_a_disk(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int]]) -> None:
    """Whatever is read, written and zeroed: it reads as a plain disk would, and the file below stays as it was."""
    path = tmp_path_factory.mktemp("disk") / "disk"
    below = os.urandom(200 * SECTOR)
    path.write_bytes(below)
    model = bytearray(below)
    with bench() as (machine, table):
        blk = add_blk(machine, path, "private", own_thread=False)
        driver = Driver(machine, table, blk.slot)
        driver.open()
        d = Disk(driver, blk, path)
        for what, sector, length, value in steps:
            count = min(length, 200 - sector)
            span = slice(sector * SECTOR, (sector + count) * SECTOR)
            if what == "read":
                assert d.read(sector, count) == model[span]
            elif what == "write":
                assert d.write(sector, bytes([value]) * (count * SECTOR)) == OK
                model[span] = bytes([value]) * (count * SECTOR)
            else:
                assert d.zero(WRITE_ZEROES if value & 1 else DISCARD, (sector, count, 0)) == OK
                model[span] = bytes(count * SECTOR)
        assert d.read(0, 200) == model
    assert path.read_bytes() == below


def test_what_was_written_to_a_private_disk_goes_over_to_another(disk: Open, tmp_path: Path) -> None:
    d = disk("private")
    assert d.write(3, b"x" * 2 * SECTOR) == OK
    assert d.zero(WRITE_ZEROES, (9, 1, 0)) == OK
    expected = bytearray(CONTENT)
    expected[3 * SECTOR : 6 * SECTOR] = b"x" * 2 * SECTOR + b"z" * SECTOR
    expected[9 * SECTOR : 10 * SECTOR] = bytes(SECTOR)
    with (tmp_path / "template").open("w+b", buffering=0) as file, bench() as (machine, table):
        blk = add_blk(machine, d.path, "private", own_thread=False)
        clone = Disk(Driver(machine, table, blk.slot), blk, d.path)
        assert clone.driver.open() == 0xF
        file.write(b"rows")  # What else is in it goes first.
        saved = d.blk.save_overlay(file.fileno())
        assert d.write(4, b"y" * SECTOR) == OK
        blk.restore_overlay(file.fileno(), saved)
        assert clone.write(5, b"z" * SECTOR) == OK
        assert clone.read(0, 64) == expected
        assert d.read(4, 2) == b"y" * SECTOR + CONTENT[5 * SECTOR : 6 * SECTOR]
        for wrong in ({"written": b""}, {"written": saved["written"][:-5]}, {"size": 512}, {"offset": 1 << 40}):
            with pytest.raises(DeviceError, match=r"template's copy .* isn't of this disk|make the template again"):
                blk.restore_overlay(file.fileno(), saved | wrong)
        assert clone.read(0, 64) == expected
