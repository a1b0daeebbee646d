"""virtio-console: ports as sockets, both ways, through every order of opening and closing."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import DATA, VERSION_1, Driver, bench, until

from hostd.devices.machine import DeviceError, Machine
from hostd.devices.virtio import Console, add_console
from hostd.memory import SlotTable

READY, ADD, PORT_READY, CONSOLE, OPEN, NAME = 0, 1, 3, 4, 6, 7
CONTROL_IN, CONTROL_OUT = 2, 3
MULTIPORT = 1
BUFFER = 64


class Ports:
    """The guest's side of the console device: its control messages, its buffers."""

    def __init__(self, machine: Machine, table: SlotTable, console: Console, paths: dict[str, str]) -> None:
        self.machine, self.table, self.console, self.paths = machine, table, console, paths
        self.driver = Driver(machine, table, console.slot)
        self.heard: list[tuple[int, int, int, bytes]] = []
        self.places: dict[tuple[int, int], int] = {}
        self.place = DATA

    def open(self, size: int = 16) -> None:
        assert self.driver.open(size=size) == 0xF
        for _ in range(size):
            self.give(CONTROL_IN)
        self.say(0, READY)

    def give(self, queue: int, size: int = BUFFER) -> None:
        """Give the device a buffer to fill."""
        at = DATA + self.place % 0x20000
        self.place += BUFFER
        head = self.driver.post(queue, (at, size, True))
        self.places[queue, head] = at
        self.driver.kick(queue)

    def taken(self, queue: int) -> bytes:
        """Return what the device has filled in."""
        found = self.driver.used(queue)
        return b"".join(self.table.read(self.places[queue, head], size) for head, size in found)

    def say(self, port: int, event: int, value: int = 1) -> None:
        self.table.write(0x30000, struct.pack("<IHH", port, event, value))
        self.driver.post(CONTROL_OUT, (0x30000, 8, False))
        self.driver.kick(CONTROL_OUT)
        self.driver.serve()
        self.driver.used(CONTROL_OUT)

    def hear(self) -> list[tuple[int, int, int, bytes]]:
        """Return the control messages since the last call: (port, event, value, name)."""
        self.driver.serve()
        heard = []
        for head, size in self.driver.used(CONTROL_IN):
            message = self.table.read(self.places[CONTROL_IN, head], size)
            heard.append((*struct.unpack("<IHH", message[:8]), message[8:]))
            self.give(CONTROL_IN)
        return heard

    def expect(self, *wanted: tuple[int, int, int, bytes]) -> None:
        found: list[tuple[int, int, int, bytes]] = []
        until(self.driver, lambda: found.extend(self.hear()) or len(found) >= len(wanted))
        assert found == list(wanted)

    def write(self, port: int, data: bytes) -> None:
        """The guest writes: one buffer, not waited for."""
        queue = 2 * port + 3 if port else 1
        self.table.write(0x38000, data)
        self.driver.post(queue, (0x38000, len(data), False))
        self.driver.kick(queue)

    def ready(self, port: int = 1, name: bytes = b"one") -> None:
        """Bring the port to where the guest's program has opened it."""
        self.hear()
        self.say(port, PORT_READY)
        self.expect((port, NAME, 1, name))
        self.say(port, OPEN)


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    with bench() as (machine, table):
        paths = {"one": str(tmp_path / "one.sock"), "two": str(tmp_path / "two.sock")}
        console = add_console(machine, paths)
        yield Ports(machine, table, console, paths)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def connect() -> Iterator[Callable[[Ports, str], socket.socket]]:
    with contextlib.ExitStack() as stack:

        def connected(ports: Ports, name: str = "one") -> socket.socket:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(ports.paths[name])
            client.setblocking(False)
            return client

        yield connected


Connect = Callable[..., socket.socket]


def receive(ports: Ports, client: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or all before the end."""
    data = bytearray()

    def complete() -> bool:
        with contextlib.suppress(BlockingIOError):
            while len(data) < size:
                got = client.recv(size - len(data))
                if not got:
                    return True
                data.extend(got)
        return len(data) >= size

    until(ports.driver, complete)
    return bytes(data)


def ended(ports: Ports, client: socket.socket) -> bool:
    return receive(ports, client, 1) == b""


def test_ports_are_announced(ports: Ports) -> None:
    ports.open()
    assert ports.driver.device(4, 4) == 3
    assert ports.hear() == [(1, ADD, 1, b""), (2, ADD, 1, b"")]
    ports.say(1, PORT_READY)
    ports.say(2, PORT_READY)
    assert ports.hear() == [(1, NAME, 1, b"one"), (2, NAME, 1, b"two")]
    described = ports.console.describe()
    assert [(port["name"], port["socket"]) for port in described["ports"]] == list(ports.paths.items())


def test_both_ways(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    ports.write(1, b"from the guest")
    assert receive(ports, client, 14) == b"from the guest"
    ports.give(4)
    client.send(b"from the host")
    taken = bytearray()
    until(ports.driver, lambda: taken.extend(ports.taken(4)) or taken)
    assert taken == b"from the host"
    port = ports.console.describe()["ports"][0]
    assert (port["to_host"], port["to_guest"], port["dropped"], port["clients"]) == (14, 13, 0, 1)


def test_the_guest_hears_of_every_client(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    for _ in range(3):
        client = connect(ports)
        ports.expect((1, OPEN, 1, b""))
        client.close()
        ports.expect((1, OPEN, 0, b""))


def test_one_client_at_a_time(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    first = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    second = connect(ports)
    second.send(b"second")
    ports.give(4)
    assert ports.hear() == []
    assert ports.taken(4) == b""
    first.close()
    ports.expect((1, OPEN, 0, b""), (1, OPEN, 1, b""))
    until(ports.driver, lambda: ports.taken(4) == b"second")
    ports.write(1, b"x")
    assert receive(ports, second, 1) == b"x"


def test_the_next_client_waits_until_the_guest_knows(ports: Ports, connect: Connect) -> None:
    """No buffer for control messages: the end can't be told, so nobody new is let in."""
    ports.driver.open(size=16)
    ports.say(0, READY)
    for _ in range(4):  # ADD, ADD, NAME, OPEN 1
        ports.give(CONTROL_IN)
    ports.say(1, PORT_READY)
    ports.say(1, OPEN)
    first = connect(ports)
    ports.driver.serve()
    first.close()
    second = connect(ports)
    ports.driver.serve()
    ports.write(1, b"for the first")
    ports.driver.serve()
    with pytest.raises(BlockingIOError):
        second.recv(100)
    assert ports.console.describe()["ports"][0]["dropped"] == 13
    found = [struct.unpack("<IHH", ports.table.read(ports.places[2, head], 8)) for head, _ in ports.driver.used(2)]
    assert found[-1] == (1, OPEN, 1)
    ports.give(CONTROL_IN)
    ports.give(CONTROL_IN)
    ports.driver.serve()
    found = [struct.unpack("<IHH", ports.table.read(ports.places[2, head], 8)) for head, _ in ports.driver.used(2)]
    assert found == [(1, OPEN, 0), (1, OPEN, 1)]
    ports.write(1, b"for the second")
    assert receive(ports, second, 14) == b"for the second"


def test_a_guest_that_closes_ends_the_client(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    ports.write(1, b"last words")
    ports.say(1, OPEN, 0)
    assert receive(ports, client, 100) == b"last words"
    ports.expect((1, OPEN, 0, b""))
    ports.say(1, OPEN, 1)
    again = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    ports.write(1, b"more")
    assert receive(ports, again, 4) == b"more"


def test_last_words_reach_a_slow_client(ports: Ports, connect: Connect) -> None:
    ports.open(size=64)
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    sent = bytearray()
    for number in range(60):
        piece = bytes([number]) * 30000
        ports.table.write(0x38000, piece)
        ports.driver.post(5, (0x38000, len(piece), False))
        ports.driver.kick(5)
        ports.driver.serve()
        if not ports.driver.used(5):
            break  # The client's socket is full; this one waits, and changes under the device's eyes no more.
        sent += piece
    else:
        pytest.fail("the socket took it all")
    sent += piece
    ports.say(1, OPEN, 0)
    # What the guest writes for the next session is not this client's.
    ports.say(1, OPEN, 1)
    assert receive(ports, client, len(sent) + 1) == sent
    ports.expect((1, OPEN, 0, b""))


def test_bytes_wait_until_the_guest_opens(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.hear()
    ports.say(1, PORT_READY)
    client = connect(ports)
    client.send(b"early")
    ports.expect((1, NAME, 1, b"one"), (1, OPEN, 1, b""))
    ports.give(4)
    ports.driver.serve()
    assert ports.taken(4) == b""
    ports.say(1, OPEN, 1)
    until(ports.driver, lambda: ports.taken(4) == b"early")


def test_a_guest_without_buffers_stops_the_client(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    data = os.urandom(100_000)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += client.send(data[sent : sent + 5000])
    ports.driver.serve()
    calls = ports.machine.c.loop.calls
    ports.driver.serve()
    assert ports.machine.c.loop.calls == calls  # Nothing is ready: nobody looks again and again.
    client.close()
    ports.driver.serve()
    got = bytearray()
    for _ in range(sent // BUFFER + 2):
        ports.give(4)
        ports.driver.serve()
        got += ports.taken(4)
    assert got == data[:sent]
    ports.expect((1, OPEN, 0, b""))


def test_a_client_that_does_not_read_stops_the_guest(ports: Ports, connect: Connect) -> None:
    ports.open(size=64)
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    piece = os.urandom(30000)
    ports.table.write(0x38000, piece)
    posted = 0
    for _ in range(40):
        ports.driver.post(5, (0x38000, len(piece), False))
        posted += 1
    ports.driver.kick(5)
    ports.driver.serve()
    assert len(ports.driver.used(5)) < posted
    calls = ports.machine.c.loop.calls
    ports.driver.serve()
    assert ports.machine.c.loop.calls == calls
    assert receive(ports, client, posted * len(piece)) == piece * posted
    assert ports.console.describe()["ports"][0]["dropped"] == 0


def test_a_half_closed_client_still_gets_its_answer(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    ports.give(4)
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    until(ports.driver, lambda: ports.taken(4) == b"question")
    ports.driver.serve()
    ports.write(1, b"answer")
    assert receive(ports, client, 6) == b"answer"
    client.close()
    ports.expect((1, OPEN, 0, b""))


def test_a_client_that_goes_while_the_port_is_closed(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.hear()
    ports.say(1, PORT_READY)
    client = connect(ports)
    client.send(b"nobody hears this")
    ports.expect((1, NAME, 1, b"one"), (1, OPEN, 1, b""))
    client.close()
    ports.expect((1, OPEN, 0, b""))
    ports.say(1, OPEN)
    ports.give(4)
    other = connect(ports)
    other.send(b"but this")
    ports.expect((1, OPEN, 1, b""))
    until(ports.driver, lambda: ports.taken(4) == b"but this")


def test_reset_ends_all_and_begins_anew(ports: Ports, connect: Connect) -> None:
    ports.open()
    ports.ready()
    client = connect(ports)
    ports.expect((1, OPEN, 1, b""))
    ports.driver.status = 0
    assert ended(ports, client)
    waiting = connect(ports)
    ports.open()
    ports.hear()
    ports.say(1, PORT_READY)
    ports.say(1, OPEN)
    ports.expect((1, NAME, 1, b"one"), (1, OPEN, 1, b""))
    ports.write(1, b"again")
    assert receive(ports, waiting, 5) == b"again"


def test_messages_of_no_port_are_nothing(ports: Ports) -> None:
    ports.open()
    ports.hear()
    for port in (0, 3, 0xFFFFFFFF):
        for event in (PORT_READY, OPEN, 99):
            ports.say(port, event)
    ports.say(1, OPEN, 0)
    ports.say(1, PORT_READY, 0)
    assert ports.hear() == []
    ports.ready()


def test_a_console_on_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with bench() as (machine, table), log.open("wb") as file:
        terminal = machine.add_terminal(file.fileno(), socket=str(tmp_path / "terminal.sock"))
        console = add_console(machine, {}, terminal=terminal)
        ports = Ports(machine, table, console, {"terminal": str(tmp_path / "terminal.sock")})
        ports.open()
        assert ports.hear() == [(0, ADD, 1, b"")]
        ports.say(0, PORT_READY)
        assert ports.hear() == [(0, NAME, 1, b"console"), (0, CONSOLE, 1, b""), (0, OPEN, 1, b"")]
        ports.say(0, OPEN)
        ports.write(0, b"hello\n")
        ports.driver.serve()
        assert log.read_bytes() == b"hello\n"
        ports.driver.device(8, 4, ord("!"))
        assert log.read_bytes() == b"hello\n!"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(ports.paths["terminal"])
            typed = b"typed " * 100
            client.send(typed)
            got = bytearray()

            def take() -> bool:
                ports.give(0)
                ports.driver.serve()
                got.extend(ports.taken(0))
                return len(got) >= len(typed)

            until(ports.driver, take)
            assert got == typed


def test_a_driver_without_multiport(tmp_path: Path) -> None:
    with bench() as (machine, table), (tmp_path / "log").open("wb") as file:
        terminal = machine.add_terminal(file.fileno())
        ports = Ports(machine, table, add_console(machine, {}, terminal=terminal), {})
        assert ports.driver.open(1 << VERSION_1) == 0xF
        ports.write(0, b"plain")
        ports.driver.serve()
        assert (tmp_path / "log").read_bytes() == b"plain"


def test_long_paths_and_what_cannot_be(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with bench() as (machine, _):
        add_console(machine, {"port": folder / "port.sock"})
        assert (folder / "port.sock").is_socket()
        for ports, what in (
            ({"p" * 32: tmp_path / "a"}, "has not 1 to 31 bytes"),
            ({"": tmp_path / "a"}, "has not 1 to 31 bytes"),
            ({"p": "/nowhere/p"}, "no socket can be made at /nowhere/p"),
            ({str(i): tmp_path / str(i) for i in range(16)}, "16 ports are more than 15"),
        ):
            with pytest.raises(DeviceError, match=what):
                add_console(machine, ports)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["give", "serve"]), st.just(0)), st.tuples(st.just("send"), st.integers(1, 5000))
        ),
        max_size=60,
    )
)
def test_no_byte_is_lost_or_doubled(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    folder = tmp_path_factory.mktemp("ports")
    with bench() as (machine, table), socket.socket(socket.AF_UNIX) as client:
        paths = {"one": str(folder / "one.sock")}
        ports = Ports(machine, table, add_console(machine, paths), paths)
        ports.open()
        ports.ready()
        client.connect(paths["one"])
        client.setblocking(False)
        ports.expect((1, OPEN, 1, b""))
        sent, got, given = bytearray(), bytearray(), 0
        for what, size in steps:
            if what == "send":
                data = os.urandom(size)
                with contextlib.suppress(BlockingIOError):
                    sent += data[: client.send(data)]
            elif what == "give" and given < 16:
                ports.give(4)
                given += 1
            else:
                ports.driver.serve()
            got += (taken := ports.taken(4))
            given -= -(-len(taken) // BUFFER) if taken else 0
            given = max(given, 0)
        client.close()
        while len(got) < len(sent):
            ports.give(4)
            ports.driver.serve()
            got += ports.taken(4)
        assert got == sent
