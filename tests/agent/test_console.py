"""The host's end of a guest's console, with a socket in place of the guest."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.agent import console
from hostd.agent.link import AgentError

LIMIT = 20.0
ATTENDING = """
import sys
from hostd.agent import console
with console.connect(sys.argv[1], "g") as link, console.raw_terminal() as raw:
    print("attached" if raw else "no terminal", end=";", flush=True)
    print("ended" if console.attend(link, detachable=raw) else "detached", end="", flush=True)
"""


class Guest:
    """The other end: what a guest's process does with its console's socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(LIMIT)

    def accept(self) -> socket.socket:
        link, _ = self.listener.accept()
        link.settimeout(LIMIT)
        return link


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path / "g.console.sock")
    yield made
    made.listener.close()


def attending(guest: Guest, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ATTENDING, str(guest.path)], stdin=stdin, stdout=stdout)


def all_of(link: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = link.recv(65536)
        assert piece, got
        got += piece
    return got


def write_and_close(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def read_until(descriptor: int, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        assert select.select([descriptor], [], [], LIMIT)[0], got
        got += os.read(descriptor, 65536)
    return got


def test_pipes_carry_every_byte_and_the_guest_s_end_ends_it(guest: Guest) -> None:
    typed = bytes(range(256)) * 4096
    reader, writer = os.pipe()
    process = attending(guest, reader, subprocess.PIPE)
    os.close(reader)
    link = guest.accept()
    typing = threading.Thread(target=write_and_close, args=(writer, typed))
    typing.start()
    assert all_of(link, len(typed)) == typed, "Ctrl-] is a byte like any other where nobody types"
    typing.join()
    link.setblocking(True)
    saying = threading.Thread(target=write_and_close, args=(link.detach(), typed))
    saying.start()
    assert process.stdout is not None
    assert process.stdout.read() == b"no terminal;" + typed + b"ended"
    saying.join()
    assert process.wait(LIMIT) == 0


def test_a_terminal_is_raw_and_is_given_back_by_ctrl_bracket(guest: Guest) -> None:
    outer, inner = pty.openpty()
    before = termios.tcgetattr(inner)
    process = attending(guest, inner, inner)
    link = guest.accept()
    read_until(outer, b"attached;")
    os.write(outer, b"a\x03b")
    assert all_of(link, 3) == b"a\x03b", "Ctrl-C goes to the guest"
    link.sendall(b"from the guest")
    read_until(outer, b"from the guest")
    os.write(outer, b"last\x1dnever")
    assert all_of(link, 4) == b"last"
    assert process.wait(LIMIT) == 0
    assert b"detached" in read_until(outer, b"detached")
    assert link.recv(16) == b"", "what was typed behind it is not the guest's"
    assert termios.tcgetattr(inner) == before
    os.close(outer)
    os.close(inner)


def test_sigterm_detaches_and_gives_the_terminal_back(guest: Guest) -> None:
    outer, inner = pty.openpty()
    before = termios.tcgetattr(inner)
    process = attending(guest, inner, inner)
    link = guest.accept()
    read_until(outer, b"attached;")
    link.sendall(b"on")
    read_until(outer, b"on")  # By now it waits, and no longer dies of it.
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 0
    assert termios.tcgetattr(inner) == before
    os.close(outer)
    os.close(inner)


def test_a_guest_that_takes_nothing_stops_what_is_read(guest: Guest) -> None:
    typed = b"x" * (4 << 20)
    reader, writer = os.pipe()
    process = attending(guest, reader, subprocess.PIPE)
    os.close(reader)
    link = guest.accept()
    os.set_blocking(writer, False)
    sent = 0
    while select.select([], [writer], [], 0.5)[1]:
        sent += os.write(writer, typed[: 1 << 16])
        assert sent < len(typed), "all was taken in, and would lie in memory"
    assert all_of(link, sent) == b"x" * sent
    os.close(writer)
    link.close()
    assert process.wait(LIMIT) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_no_guest_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="guest g: its console can't be reached"):
        console.connect(tmp_path / "none.sock", "g")
