"""Devices written out and taken back: a clone's machine goes on where another one's stood."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pci_driver
import pytest
from test_virtio_console import OPEN, Ports
from test_virtio_net import READY, Card
from vhost_backend import socket_folder
from virtio_driver import DATA, LOW, ROW, Driver, bench

from hostd.boot.linux import layout
from hostd.devices._devices import lib
from hostd.devices.machine import DeviceError, Machine
from hostd.devices.virtio import add_balloon, add_blk, add_console, add_rng
from hostd.memory import Anonymous, SlotTable

Plug = Callable[[Machine, SlotTable], None]
SERIAL = layout.SERIAL_PORT
ENABLE = 0x8000


@contextlib.contextmanager
def thawed(table: SlotTable, state: bytes, plug: Plug) -> Iterator[tuple[Machine, SlotTable]]:
    """A machine that goes on from `state`, with a copy of the memory in `table`."""
    with bench() as (machine, own):
        own.write(0, table.read(0, LOW))
        plug(machine, own)
        machine.restore(state)
        yield machine, own


def frozen(machine: Machine) -> bytes:
    with machine.held():
        return machine.save()


def moved(driver: Driver, machine: Machine, table: SlotTable) -> Driver:
    """The same driver, in the clone."""
    clone = copy.deepcopy(driver, {id(driver.machine): machine, id(driver.table): table})
    assert clone.machine is machine
    return clone


def damaged(state: bytes, at: int, value: int) -> bytes:
    """Change a byte behind the checksum's back."""
    data = bytearray(state[4:])
    data[at] = value
    return struct.pack("<I", zlib.crc32(data)) + data


def test_a_queue_goes_on_and_what_was_notified_is_served() -> None:
    def plug(machine: Machine, _: SlotTable) -> None:
        add_rng(machine)

    with bench() as (machine, table):
        plug(machine, table)
        driver = Driver(machine, table, 1)
        assert driver.open() == 0xF
        for _ in range(20):  # Once around the ring, and more.
            assert driver.ask(0, (DATA, 32, True)) == 32
        head = driver.post(0, (DATA + 64, 32, True))
        driver.kick(0)  # Nobody serves it here.
        with thawed(table, frozen(machine), plug) as (other, memory):
            clone = moved(driver, other, memory)
            assert clone.status == 0xF
            assert clone.used(0) == []
            clone.serve()
            assert clone.used(0) == [(head, 32)]
            driver.serve()
            assert driver.used(0) == [(head, 32)], "the one that was frozen goes on, too"
            assert memory.read(DATA + 64, 32) != table.read(DATA + 64, 32)
            assert clone.ask(0, (DATA, 16, True)) == 16
            assert driver.ask(0, (DATA, 8, True)) == 8


def test_registers_that_moved_interrupts_that_wait_and_what_a_region_says() -> None:
    with contextlib.ExitStack() as stack:
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        for fd in fds:
            stack.callback(os.close, fd)

        def plug(machine: Machine, _: SlotTable) -> None:
            machine.add_ivshmem("r", Anonymous(), 1 << 20, "rw", peers=[[fds[0]], [fds[1]]])
            machine.add_ivshmem("s", Anonymous(), 1 << 20, "rw")

        machine, table = stack.enter_context(bench())
        plug(machine, table)
        driver = pci_driver.Driver(machine)
        registers, region, other_region = driver.bar(1, 0), driver.bar(1, 2), driver.bar(2, 2)
        driver.write(registers, 0x1234)
        driver.set_config(1, 0x10, registers + 0x100000)
        driver.command(1, driver.config(1, 4, 2) & ~2)
        driver.command(2, driver.config(2, 4, 2) & ~2)
        driver.set_config(1, 0x18, other_region & 0xFFFFFFFF)  # The two change places.
        driver.set_config(2, 0x18, region & 0xFFFFFFFF)
        for address, slot in ((region, 2), (other_region, 1)):
            driver.set_config(slot, 0x1C, address >> 32)
        far = other_region + (1 << 30)
        driver.set_config(2, 0x18, far & 0xFFFFFFFF)
        driver.command(2, driver.config(2, 4, 2) | 2)
        driver.command(1, driver.config(1, 4, 2) | 2)
        machine.handle_pending()
        driver.command(2, driver.config(2, 4, 2) & ~2)
        driver.set_config(2, 0x18, region & 0xFFFFFFFF)
        driver.command(2, driver.config(2, 4, 2) | 2)
        machine.handle_pending()
        capability = driver.capability(1, 0x11)
        entries = driver.bar(1, 1)
        for at, value in ((0, 0xFEE00000), (4, 0), (8, 0x4041), (12, 1)):
            driver.write(entries + at, value)
        driver.set_config(1, capability + 2, ENABLE, 2)
        lib.msix_raise(machine.c.pci.devices[1], 0)
        assert (driver.bar(1, 2), driver.bar(2, 2)) == (other_region, region)

        clone, memory = stack.enter_context(thawed(table, frozen(machine), plug))
        guest = pci_driver.Driver(clone)
        assert (guest.bar(1, 0), guest.bar(1, 2), guest.bar(2, 2)) == (registers + 0x100000, other_region, region)
        assert guest.read(registers + 0x100000) == 0x1234
        assert guest.read(registers) == 0xFFFFFFFF
        assert {row.name: row.gpa for row in memory if row.name in "rs"} == {"r": other_region, "s": region}
        doorbells = [call for call in guest.calls("doorbell") if call.on]
        assert {call.address for call in doorbells[-2:]} == {registers + 0x100000 + 12}
        assert guest.read(entries + 0x800) == 1, "it waits for the mask to go"
        guest.write(entries + 12, 0)
        assert [(call.address, call.number) for call in guest.calls("msi")] == [(0xFEE00000, 0x4041)]


def test_the_serial_port(tmp_path: Path) -> None:
    terminals = []

    def plug(machine: Machine, _: SlotTable) -> None:
        path = str(tmp_path / f"{len(terminals)}.sock")
        terminals.append(path)
        machine.add_terminal(socket=path)
        machine.add_serial()
        machine.add_power()

    with bench() as (machine, table):
        plug(machine, table)
        driver = pci_driver.Driver(machine)
        for register, value in ((3, 3), (4, 0x0B), (7, 0x5A), (2, 1), (1, 1)):
            driver.outp(SERIAL + register, value)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(terminals[0])
            driver.turn()
            client.send(b"abc")
            driver.turn()
        assert driver.inp(SERIAL) == ord("a")
        with thawed(table, frozen(machine), plug) as (clone, _):
            guest = pci_driver.Driver(clone)
            assert [call.on for call in guest.calls("line")] == [1]
            assert [guest.inp(SERIAL + register) for register in (3, 4, 7, 1)] == [3, 0x0B, 0x5A, 1]
            assert bytes(guest.inp(SERIAL) for _ in range(2)) == b"bc"
            assert guest.inp(SERIAL + 5) & 1 == 0
            assert [call.on for call in guest.calls("line")] == [0]
        machine.close()


def test_a_console_tells_that_its_host_has_gone_and_takes_the_next(tmp_path: Path) -> None:
    paths: list[str] = []

    def plug(machine: Machine, _: SlotTable) -> None:
        paths.append(str(tmp_path / f"{len(paths)}.sock"))
        add_console(machine, {"one": paths[-1]})

    with contextlib.ExitStack() as stack:
        machine, table = stack.enter_context(bench())
        plug(machine, table)
        ports = Ports(machine, table, machine.faces[0], {"one": paths[0]})  # type: ignore[arg-type]
        ports.open()
        ports.ready()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(paths[0])
        ports.expect((1, OPEN, 1, b""))
        state = frozen(machine)
        clone, memory = stack.enter_context(thawed(table, state, plug))
        guest = copy.copy(ports)
        guest.machine, guest.table, guest.driver = clone, memory, moved(ports.driver, clone, memory)
        guest.places = dict(ports.places)
        guest.expect((1, OPEN, 0, b""))
        second = stack.enter_context(socket.socket(socket.AF_UNIX))
        second.connect(paths[1])
        guest.expect((1, OPEN, 1, b""))
        guest.write(1, b"hello")
        guest.driver.serve()
        assert second.recv(100) == b"hello"
        ports.write(1, b"still here")
        ports.driver.serve()
        assert client.recv(100) == b"still here"


def test_a_network_card_goes_on_where_its_back_end_had_come_to() -> None:
    with socket_folder() as folder, socket_folder() as other_folder, contextlib.ExitStack() as stack:
        card, clone = Card(folder, stack), Card(other_folder, stack)
        backend = card.back_end()
        card.add()
        card.open()
        for _ in range(20):
            card.exchange(backend)
        with card.machine.held():
            state = card.machine.save()
            memory = card.table.read(0, LOW)
            with backend.lock:
                assert not any(ring.kick >= 0 for ring in backend.rings.values()), "nobody writes to memory meanwhile"
        card.wait("running")
        card.exchange(backend)

        second = clone.back_end()
        clone.table.write(0, memory)
        net = clone.add(mac="02:00:00:00:00:0b")
        clone.machine.restore(state)
        clone.driver = moved(card.driver, clone.machine, clone.table)
        for own, old in zip(clone.driver.queues, card.driver.queues, strict=True):
            now = struct.unpack("<H", clone.table.read(own.used + 2, 2))[0]
            available = struct.unpack("<H", clone.table.read(own.avail + 2, 2))[0]
            own.next_desc -= (old.next_avail - available) * (2 if own is clone.driver.queues[1] else 1)
            own.next_avail, own.seen = available, now
        clone.wait("running")
        assert {base for _, base in second.told("SET_VRING_BASE")} == {20}
        assert clone.driver.status == READY
        assert bytes(clone.driver.device(at, 1) for at in range(6)) == bytes.fromhex("02000000000b")
        clone.exchange(second)
        assert net.describe()["state"] == "running"


def disk(path: Path) -> Plug:
    def plug(machine: Machine, table: SlotTable) -> None:
        machine.add_terminal()
        machine.add_serial()
        add_blk(machine, path, own_thread=False)
        add_rng(machine)
        add_balloon(machine, table)

    return plug


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("bigger", "its virtio-blk device is not this one: the file behind it has another size"),
        ("fewer", "another number of devices on the PCI bus; this guest has 2"),
        ("other", "it has another device in the place of virtio-rng rng"),
        ("bare", "it is of another number of devices"),
    ],
)
def test_a_state_of_other_devices_is_refused_with_a_sentence(tmp_path: Path, change: str, sentence: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))

    def other(machine: Machine, table: SlotTable) -> None:
        if change != "bare":
            machine.add_terminal()
            machine.add_serial()
        add_blk(machine, path, own_thread=False)
        add_rng(machine)
        if change == "other":
            add_rng(machine, "more")
        elif change != "fewer":
            add_balloon(machine, table)

    with bench() as (machine, table):
        disk(path)(machine, table)
        assert Driver(machine, table, 1).open() == 0xF
        state = frozen(machine)
    if change == "bigger":
        path.write_bytes(bytes(8192))
    with bench() as (machine, table):
        other(machine, table)
        with pytest.raises(DeviceError) as caught:
            machine.restore(state)
        wanted = sentence.replace("virtio-rng rng", "virtio-rng more")
        assert str(caught.value).endswith(wanted)
        assert "doesn't fit this guest" in str(caught.value)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    with bench() as (machine, table):
        disk(path)(machine, table)
        state = frozen(machine)
    for wrong in (b"", state[:3], state[:-1], state[:100], state + b"x", state[:50] + b"\xff" + state[51:]):
        with bench() as (machine, table):
            disk(path)(machine, table)
            with pytest.raises(DeviceError, match="damaged; make the template again"):
                machine.restore(wrong)


def test_what_a_hostile_state_says_is_never_believed(tmp_path: Path) -> None:
    """Any byte may be anything: it is refused, or the devices work as far as that goes."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    chance = random.Random(20260801)

    def plug(machine: Machine, table: SlotTable) -> None:
        disk(path)(machine, table)
        add_console(machine, {"one": str(tmp_path / "one.sock")})

    with bench() as (machine, table):
        plug(machine, table)
        drivers = [Driver(machine, table, slot) for slot in range(1, 5)]
        for driver in drivers:
            assert driver.open() == 0xF
        state = frozen(machine)
        memory = table.read(0, LOW)
    refused = 0
    for _ in range(400):
        wrong = state
        for _ in range(chance.choice((1, 1, 2, 8))):
            wrong = damaged(
                wrong, chance.randrange(len(state) - 4), chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            )
        with SlotTable(None) as own:
            own.add(0, ROW, Anonymous(), name="ram.0")
            own.add(ROW, LOW - ROW, Anonymous(), name="ram.1")
            own.write(0, memory[: 1 << 16])
            with Machine(None, own, pci_driver.PCI64) as clone:
                plug(clone, own)
                try:
                    clone.restore(wrong)
                except DeviceError:
                    refused += 1
                    continue
                for driver in drivers:
                    mine = moved(driver, clone, own)
                    for index in range(len(mine.queues)):
                        mine.kick(index)
                    mine.serve()
                    mine.status = 0
                guest = pci_driver.Driver(clone)
                for register in range(8):
                    guest.inp(SERIAL + register)
                guest.turn()
                clone.describe()
    assert refused > 40
