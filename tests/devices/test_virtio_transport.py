"""virtio over PCI: what a driver finds, how a device comes up, breaks and is reset."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import (
    DATA,
    DEVICE,
    DRIVER_OK,
    FEATURES_OK,
    INDIRECT,
    ISR,
    LOW,
    NEEDS_RESET,
    NEXT,
    NOTIFY,
    RING_EVENT_IDX,
    RING_INDIRECT_DESC,
    ROW,
    VERSION_1,
    WRITE,
    Driver,
    access,
    bench,
    messages,
)

from hostd.devices.machine import Machine
from hostd.devices.virtio import Rng, add_balloon, add_rng
from hostd.memory import SlotTable


class Setup:
    def __init__(self, machine: Machine, table: SlotTable) -> None:
        self.machine, self.table = machine, table
        self.rng: Rng = add_rng(machine)
        self.driver = Driver(machine, table, self.rng.slot)


@pytest.fixture
def rng() -> Iterator[Setup]:
    with bench() as (machine, table):
        yield Setup(machine, table)


def enable_msix(driver: Driver, vectors: int) -> None:
    table = driver.config(0x14, 4) & ~0xF
    for vector in range(vectors):
        for offset, value in ((0, 0xFEE00000), (4, 0), (8, 0x4000 + vector), (12, 0)):
            access(driver.machine, table + 16 * vector + offset, 4, value)
    driver.config(driver.msix + 2, 2, 0x8000)


def test_identity(rng: Setup) -> None:
    driver = rng.driver
    assert (driver.config(0, 2), driver.config(2, 2)) == (0x1AF4, 0x1044)
    assert driver.config(8, 1) == 1
    assert driver.config(0x2E, 2) >= 0x40
    assert driver.config(0x3D, 1) == 1
    assert driver.offered >> VERSION_1 & 1
    assert driver.at[NOTIFY][1] == 4
    assert DEVICE not in driver.at  # The entropy device has no configuration.


def test_comes_up_and_works(rng: Setup) -> None:
    driver = rng.driver
    assert driver.open() == 1 | 2 | DRIVER_OK | FEATURES_OK
    assert driver.ask(0, (DATA, 64, True)) == 64
    assert driver.table.read(DATA, 64) != bytes(64)
    assert driver.table.read(DATA + 64, 64) == bytes(64)


@pytest.mark.parametrize("features", [0, 1 << RING_INDIRECT_DESC, (1 << 40) | (1 << VERSION_1)])
def test_features_that_cannot_be(rng: Setup, features: int) -> None:
    driver = rng.driver
    driver.status = 0
    driver.status = 3
    for half in range(2):
        driver.common(8, 4, half)
        driver.common(12, 4, features >> 32 * half & 0xFFFFFFFF)
    driver.status = 3 | FEATURES_OK
    assert not driver.status & FEATURES_OK
    driver.status = 3 | FEATURES_OK | DRIVER_OK
    assert not driver.status & DRIVER_OK


def test_features_are_settled_once(rng: Setup) -> None:
    driver = rng.driver
    driver.open(1 << VERSION_1)
    driver.common(8, 4, 0)
    driver.common(12, 4, 1 << RING_EVENT_IDX)
    assert driver.common(12, 4) == 0


def test_no_work_before_driver_ok(rng: Setup) -> None:
    driver = rng.driver
    driver.open(start=False)
    driver.post(0, (DATA, 64, True))
    driver.kick(0)
    driver.serve()
    assert driver.used(0) == []
    # Nor is the notification lost: what was posted before DRIVER_OK is served with it.
    driver.status = 0xF
    driver.serve()
    assert driver.used(0) == [(0, 64)]


def test_queue_fields(rng: Setup) -> None:
    driver = rng.driver
    driver.open(start=False, size=8)
    driver.common(22, 2, 0)
    assert (driver.common(24, 2), driver.common(28, 2)) == (8, 1)
    driver.common(24, 2, 4)  # Too late.
    driver.common(28, 2, 0)
    assert (driver.common(24, 2), driver.common(28, 2)) == (8, 1)
    driver.common(22, 2, 7)  # No such queue.
    assert (driver.common(24, 2), driver.common(28, 2), driver.common(26, 2)) == (0, 0, 0)
    driver.status = 0
    driver.common(22, 2, 0)
    assert (driver.common(24, 2), driver.common(28, 2), driver.common(26, 2)) == (16, 0, 0xFFFF)
    for bad in (3, 0, 32, 0xFFFF):
        driver.common(24, 2, bad)
        assert driver.common(24, 2) == 16


def test_vectors_that_there_are(rng: Setup) -> None:
    driver = rng.driver
    driver.open()
    for vector, reads in ((0, 0), (1, 1), (2, 0xFFFF), (0xFFFF, 0xFFFF)):
        driver.common(16, 2, vector)
        assert driver.common(16, 2) == reads


def test_interrupts_by_pin(rng: Setup) -> None:
    driver = rng.driver
    driver.open(1 << VERSION_1)
    driver.ask(0, (DATA, 8, True))
    line = 16 + rng.rng.slot % 8
    assert messages(rng.machine)[-1] == ("line", line, 1)
    assert access(rng.machine, driver.at[ISR][0], 1) == 1
    assert messages(rng.machine)[-1] == ("line", line, 0)
    assert access(rng.machine, driver.at[ISR][0], 1) == 0


def test_interrupts_by_message(rng: Setup) -> None:
    driver = rng.driver
    driver.open()
    enable_msix(driver, 2)
    driver.ask(0, (DATA, 8, True))
    assert messages(rng.machine) == [("msi", 0xFEE00000, 0x4001)]


def test_the_driver_may_not_want_interrupts(rng: Setup) -> None:
    driver = rng.driver
    driver.open(1 << VERSION_1)
    driver.table.write(driver.queues[0].avail, struct.pack("<H", 1))
    driver.ask(0, (DATA, 8, True))
    assert messages(rng.machine) == []
    assert rng.rng.describe()["queues"][0]["suppressed"] == 1


def test_event_index(rng: Setup) -> None:
    driver = rng.driver
    driver.open()
    enable_msix(driver, 2)
    queue = driver.queues[0]
    used_event = queue.avail + 4 + 2 * queue.size
    avail_event = queue.used + 4 + 8 * queue.size
    driver.table.write(used_event, struct.pack("<H", 2))  # When the third buffer is used.
    for count in range(1, 5):
        driver.ask(0, (DATA, 8, True))
        assert struct.unpack("<H", driver.table.read(avail_event, 2))[0] == count
        # The first push after a start may always interrupt; then it is the third.
        assert len(messages(rng.machine)) == (1 if count < 3 else 2)


@pytest.mark.parametrize("across", [False, True])
def test_indirect(rng: Setup, across: bool) -> None:
    driver = rng.driver
    driver.open()
    # Across the border of two rows: the table, and the buffers.
    table = ROW - 24 if across else DATA
    start = ROW - 16
    buffers = [(start + 64 * i - (64 if across else 0), 32, True) for i in range(3)]
    if across:
        table = ROW - 16 * 12
        buffers[1] = (start, 32, True)
    assert driver.ask(0, *buffers, indirect=table) == 96
    for at, size, _ in buffers:
        assert driver.table.read(at, size) != bytes(size)


def broken(setup: Setup) -> str:
    """Return why the device broke; it says so to the driver, and does nothing until it is reset."""
    driver = setup.driver
    driver.kick(0)
    driver.serve()
    assert driver.status & NEEDS_RESET
    reason = setup.rng.describe()["broken"]
    before = setup.rng.c.bytes
    driver.post(0, (DATA, 8, True))
    driver.kick(0)
    driver.serve()
    assert setup.rng.c.bytes == before
    assert driver.open() == 0xF
    assert driver.ask(0, (DATA, 16, True)) == 16
    return str(reason)


def test_breaks_on_an_index_too_far(rng: Setup) -> None:
    rng.driver.open()
    rng.table.write(rng.driver.queues[0].avail + 2, struct.pack("<H", 17))
    assert "index" in broken(rng)


def test_breaks_on_a_head_past_the_table(rng: Setup) -> None:
    rng.driver.open()
    rng.driver.publish(0, 16)
    assert "head" in broken(rng)


def test_breaks_on_a_next_past_the_table(rng: Setup) -> None:
    rng.driver.open()
    rng.driver.desc(0, 0, DATA, 4, NEXT | WRITE, 16)
    rng.driver.publish(0, 0)
    assert "next" in broken(rng)


def test_breaks_on_a_loop(rng: Setup) -> None:
    rng.driver.open()
    rng.driver.desc(0, 0, DATA, 4, NEXT | WRITE, 1)
    rng.driver.desc(0, 1, DATA, 4, NEXT | WRITE, 0)
    rng.driver.publish(0, 0)
    assert "loop" in broken(rng)


@pytest.mark.parametrize(("at", "size"), [(LOW, 4), (LOW - 2, 4), (1 << 63, 4), ((1 << 64) - 2, 4), (0xFEE00000, 4)])
def test_breaks_on_an_address_outside(rng: Setup, at: int, size: int) -> None:
    rng.driver.open()
    rng.driver.desc(0, 0, at, size, WRITE)
    rng.driver.publish(0, 0)
    assert "outside" in broken(rng)


def test_breaks_on_the_wrong_order(rng: Setup) -> None:
    rng.driver.open()
    rng.driver.post(0, (DATA, 4, True), (DATA + 4, 4, False))
    assert "readable" in broken(rng)


@pytest.mark.parametrize(
    ("size", "flags", "features"),
    [(24, INDIRECT, ~0), (0, INDIRECT, ~0), (16, INDIRECT | NEXT, ~0), (16, INDIRECT, 1 << VERSION_1)],
)
def test_breaks_on_a_bad_indirect_table(rng: Setup, size: int, flags: int, features: int) -> None:
    rng.driver.open(features)
    rng.driver.desc(0, 0, DATA, size, flags, 1)
    rng.driver.publish(0, 0)
    assert "indirect" in broken(rng)


def test_breaks_on_a_next_past_an_indirect_table(rng: Setup) -> None:
    rng.driver.open()
    rng.table.write(DATA, struct.pack("<QIHHQIHH", DATA, 16, NEXT | WRITE, 1, DATA, 16, WRITE, 0))
    rng.driver.desc(0, 0, DATA, 16, INDIRECT)
    rng.driver.publish(0, 0)
    assert "next" in broken(rng)


def test_breaks_on_a_nested_table(rng: Setup) -> None:
    rng.driver.open()
    rng.table.write(DATA, struct.pack("<QIHH", DATA, 16, INDIRECT, 0))
    rng.driver.desc(0, 0, DATA, 16, INDIRECT)
    rng.driver.publish(0, 0)
    assert "indirect" in broken(rng)


def test_breaks_on_rings_outside(rng: Setup) -> None:
    driver = rng.driver
    driver.open(start=False)
    driver.status = 0
    driver.status = 3
    driver.common(8, 4, 1)
    driver.common(12, 4, 1)
    driver.status = 3 | FEATURES_OK
    driver.common(22, 2, 0)
    for offset, address in ((32, 1 << 40), (40, 1 << 41), (48, 1 << 42)):
        driver.common(offset, 8, address)
    driver.common(28, 2, 1)
    driver.status = 0xF
    driver.serve()
    assert driver.status & NEEDS_RESET
    assert "rings" in rng.rng.describe()["broken"]


def test_breaking_is_a_configuration_interrupt(rng: Setup) -> None:
    driver = rng.driver
    driver.open()
    enable_msix(driver, 2)
    driver.common(16, 2, 0)
    driver.publish(0, 999)
    driver.kick(0)
    driver.serve()
    assert messages(rng.machine) == [("msi", 0xFEE00000, 0x4000)]
    assert rng.rng.describe()["errors"] == {"descriptor head is past the descriptor table": 1}


def test_window_in_configuration_space(rng: Setup) -> None:
    """4.1.4.9: the whole device can be driven without touching a BAR."""
    driver = rng.driver
    base = driver.config(0x10, 4) & ~0xF
    common = driver.at[1][0] - base

    def window(offset: int, size: int, value: int | None = None) -> int:
        driver.config(driver.window + 4, 1, 0)
        driver.config(driver.window + 8, 4, offset)
        driver.config(driver.window + 12, 4, size)
        return driver.config(driver.window + 16, size, value)

    window(common + 20, 1, 0)
    window(common + 20, 1, 3)
    assert window(common + 20, 1) == driver.status == 3
    assert window(common + 18, 2) == 1
    # Nothing happens for what no access of a BAR is.
    for bar, offset, size in ((0, common + 20, 3), (0, common + 21, 2), (5, common + 20, 1), (0, 0xFFFFFFFF, 1)):
        driver.config(driver.window + 4, 1, bar)
        driver.config(driver.window + 8, 4, offset)
        driver.config(driver.window + 12, 4, size)
        driver.config(driver.window + 16, 1, 0)
        assert driver.status == 3


def test_power_on_state_after_machine_reset(rng: Setup) -> None:
    driver = rng.driver
    driver.open()
    driver.status = 0
    assert (driver.status, driver.common(16, 2), driver.common(28, 2)) == (0, 0xFFFF, 0)


def test_generation_moves_with_the_configuration() -> None:
    with bench() as (machine, table):
        balloon = add_balloon(machine, table)
        driver = Driver(machine, table, balloon.slot)
        driver.open()
        assert driver.device(0, 4) == 0
        before = driver.common(21, 1)
        assert driver.device(0, 4) == 0
        assert driver.common(21, 1) == before
        balloon.set_target(8 << 12)
        assert driver.device(0, 4) == 8
        assert driver.common(21, 1) != before
        # Past its end it reads as zeros, and nothing can be written but what may be.
        assert driver.device(16, 4) == driver.device(0x7F8, 8) == 0
        driver.device(0, 4, 99)
        assert driver.device(0, 4) == 8


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    ring=st.sampled_from([1, 2, 4, 16]),
    event=st.booleans(),
    indirect=st.booleans(),
)
def test_every_buffer_is_used_once_and_in_order(sizes: list[int], ring: int, event: bool, indirect: bool) -> None:
    with bench() as (machine, table):
        setup = Setup(machine, table)
        driver = setup.driver
        driver.open(~0 if event else ~(1 << RING_EVENT_IDX), size=ring)
        heads, used = [], []
        for number, size in enumerate(sizes):
            at = DATA + 512 * number
            heads.append((driver.post(0, (at, size, True), indirect=0x30000 if indirect else None), size))
            driver.kick(0)
            driver.serve()
            used += driver.used(0)
        assert used == heads
