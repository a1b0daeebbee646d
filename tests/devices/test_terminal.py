"""The consoles' far end: log, rotation, clients that come, type, sleep and go, and a kernel's panic."""

from __future__ import annotations

import os
import socket

import pytest

from hostd.boot.linux import layout
from hostd.devices.machine import DeviceError

TAIL, BACKLOG, CLIENTS = 16384, 65536, 8


class Screen:
    def __init__(self, machine, driver, folder, limit=1 << 30):
        self.machine, self.driver = machine, driver
        self.log, self.path = folder / "guest.log", str(folder / "console.sock")
        self.fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.terminal = machine.add_terminal(self.fd, str(self.log), limit, self.path)
        machine.add_serial()

    def say(self, text):
        for byte in text.encode():
            self.driver.outp(layout.SERIAL_PORT, byte)

    def attach(self):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self.path)
        client.settimeout(10)
        self.driver.turn()
        return client


@pytest.fixture
def screen(machine, driver, tmp_path):
    screen = Screen(machine, driver, tmp_path)
    yield screen
    machine.close()
    os.close(screen.fd)


def received(client, size):
    got = b""
    while len(got) < size:
        piece = client.recv(size - len(got))
        assert piece, f"the end after {got!r}"
        got += piece
    return got


def test_output_goes_to_the_log_and_to_every_client(screen):
    clients = [screen.attach() for _ in range(3)]
    screen.say("hello\n")
    assert screen.log.read_bytes() == b"hello\n"
    assert [received(client, 6) for client in clients] == [b"hello\n"] * 3


def test_a_new_client_sees_the_tail(screen):
    screen.say("x" * TAIL + "the end")
    client = screen.attach()
    assert received(client, TAIL) == b"x" * (TAIL - 7) + b"the end"


def test_a_client_that_does_not_read_loses_output_and_stalls_nobody(screen):
    sleeper, reader = screen.attach(), screen.attach()
    screen.machine.start()
    text, times = "0123456789abcdef" * 64, 400
    for _ in range(times):  # More than a socket and the backlog hold.
        screen.say(text)
        assert received(reader, len(text)) == text.encode()
    lost = screen.machine.describe()["terminal"]["lost"]
    assert 0 < lost <= times * len(text) - BACKLOG
    received(sleeper, times * len(text) - lost)
    screen.say("again")
    assert received(sleeper, 5) == b"again"


def test_clients_come_and_go(screen):
    for _ in range(3 * CLIENTS):
        client = screen.attach()
        screen.say("a")
        received(client, 1)
        client.close()
        screen.driver.turn()
    screen.say("b")
    assert screen.log.read_bytes() == b"a" * 3 * CLIENTS + b"b"


def test_one_client_too_many_is_turned_away(screen):
    clients = [screen.attach() for _ in range(CLIENTS)]
    assert screen.attach().recv(1) == b""
    screen.say("!")
    assert [received(client, 1) for client in clients] == [b"!"] * CLIENTS


def test_a_client_that_types_no_more_still_watches(screen):
    client = screen.attach()
    screen.driver.outp(layout.SERIAL_PORT + 1, 1)
    client.shutdown(socket.SHUT_WR)
    screen.driver.turn()
    screen.say("still")
    assert received(client, 5) == b"still"


def test_a_full_log_is_kept_and_a_new_one_begun(machine, driver, tmp_path):
    screen = Screen(machine, driver, tmp_path, limit=10)
    screen.say("0123456789abc")
    assert screen.log.read_bytes() == b"abc"
    assert (tmp_path / "guest.log.1").read_bytes() == b"0123456789"
    machine.close()
    os.close(screen.fd)


@pytest.mark.parametrize(
    "line",
    ["Kernel panic - not syncing: VFS: no root", "[    1.234567] Kernel panic - not syncing: VFS: no root"],
)
def test_a_panic_is_noticed(screen, line):
    screen.say(f"before\r\n{line}\r\n[    1.3] ---[ end Kernel panic - not syncing: another ]---\r\n")
    assert screen.terminal.panic == "Kernel panic - not syncing: VFS: no root"


@pytest.mark.parametrize(
    "text", ["he said: Kernel panic - not syncing\n", "Kernel panic - not syncing", "\n" * 10, "a" * 10_000 + "\n"]
)
def test_other_lines_are_no_panic(screen, text):
    screen.say(text)
    assert screen.terminal.panic == ""


def test_a_long_line_of_panic_is_cut(screen):
    screen.say("Kernel panic - not syncing: " + "x" * 1000 + "\n")
    assert len(screen.terminal.panic) == 255


def test_a_socket_that_can_not_be_made_is_named(machine, tmp_path):
    with pytest.raises(DeviceError, match=r"nowhere/console\.sock"):
        machine.add_terminal(socket=str(tmp_path / "nowhere" / "console.sock"))
    machine.terminal = None


def test_a_path_longer_than_a_socket_address_works(machine, driver, tmp_path):
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    screen = Screen(machine, driver, folder)
    assert os.path.exists(screen.path)
    machine.close()
    assert not os.path.exists(screen.path)
    os.close(screen.fd)
