"""Guest processes forked from a warm parent, driven as a supervisor drives them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from guestlib import compile_program
from hostd.boot.elf import read_image
from hostd.control.framing import FrameReader, pack_frame
from hostd.vmm import warm

OPTIONS = {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False}
FOREVER = 'int main(void) { guest_print("up\\n"); report("up", 1); for (;;) guest_wait(0, 0, GUEST_NO_LIMIT); }'
SPINNING = 'int main(void) { report("up", 1); for (;;) ; }'


class Cluster:
    """A cluster directory with a warm parent."""

    def __init__(self, folder: Path, *, foreground: bool) -> None:
        self.folder = folder
        self.foreground = foreground
        for name in ("guests", "logs"):
            (folder / name).mkdir()
        self.link, self.process = warm.spawn(str(folder), foreground=foreground, cleanup=[str(folder)])
        self.link.settimeout(20)

    def hear(self) -> Any:
        return msgpack.unpackb(self.link.recv(1 << 20))

    def start(self, name: str, source: str, **spec: Any) -> int:
        program = self.folder / f"{name}.c"
        program.write_text('#include "guest.h"\n' + textwrap.dedent(source))
        image = read_image(compile_program([program], self.folder / f"{name}.elf"))
        full = {
            "name": name,
            "cluster": "tests",
            "dir": str(self.folder),
            "lifeline": self.foreground,
            "memory": 4 << 20,
            "args": [],
            "env": {},
            "cpu": None,
            "seed": bytes(32),
            "kind": "unikernel",
            "image": image.describe(),
            "options": OPTIONS,
            "log_limit": 1 << 20,
            "regions": [],
            "channels": [],
            "slots": [],
            "framebuffer": None,
            "bells": 0,
        } | spec
        log = os.open(self.folder / "logs" / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        file = os.open(image.path, os.O_RDONLY)
        socket.send_fds(self.link, [msgpack.packb({"start": full})], [log, file])
        os.close(log)
        os.close(file)
        told = self.hear()
        assert told["started"] == name
        return int(told["pid"])

    def connect(self, name: str) -> Guest:
        return Guest(self.folder / "guests" / f"{name}.sock")


class Guest:
    """A supervisor's connection to a guest process."""

    def __init__(self, path: Path) -> None:
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(20)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.link.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        self.reader = FrameReader()
        self.ready: list[Any] = []
        self.hello = self.next()

    def next(self) -> Any:
        while not self.ready:
            data = self.link.recv(65536)
            assert data, "the guest process closed the connection"
            self.ready += self.reader.feed(data)
        return self.ready.pop(0)

    def until(self, key: str, value: Any = None) -> Any:
        while True:
            message = self.next()
            if key in message and value in (None, message[key]):
                return message

    def call(self, name: str, **arguments: Any) -> Any:
        self.link.sendall(pack_frame({"id": 7, "call": name} | arguments))
        return self.until("id")

    def stop(self) -> None:
        self.link.sendall(pack_frame({"id": 8, "call": "stop"}))
        assert self.until("event", "result")["result"]["outcome"] == "killed"
        self.call("take")

    def result(self) -> Any:
        return self.hello["result"] or self.until("event", "result")["result"]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hostd-"))  # A socket's path may have 107 bytes.
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder, foreground=True)
    yield cluster
    cluster.link.close()
    cluster.process.wait(20)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_guest_tells_its_reports_and_result_and_leaves(cluster):
    pid = cluster.start("one", 'int main(void) { guest_print("hi\\n"); report("n", 5); return 3; }')
    guest = cluster.connect("one")
    assert guest.hello["pid"] == pid
    result = guest.result()
    assert (result["outcome"], result["code"]) == ("exit", 3)
    again = cluster.connect("one")
    assert again.hello["reports"] == {"n": 5}
    assert again.hello["result"] == result
    assert (cluster.folder / "logs/one.log").read_text() == "hi\n"
    assert "ok" in again.call("take")
    assert cluster.hear() == {"exited": "one", "pid": pid, "status": 0}
    assert not (cluster.folder / "guests/one.sock").exists()


@pytest.mark.parametrize("source", [FOREVER, SPINNING])
def test_a_running_guest_can_be_stopped(cluster, source):
    cluster.start("one", source)
    guest = cluster.connect("one")
    if not guest.hello["reports"]:
        guest.until("event", "report")
    assert guest.call("take")["error"] == "guest one: take: its guest is still running"
    guest.stop()
    assert cluster.hear()["exited"] == "one"


def test_rows_and_memory_can_be_read_while_it_runs(cluster):
    cluster.start("one", 'int word = 0x12345678; int main(void) { report("at", (int64_t)&word); for (;;) ; }')
    guest = cluster.connect("one")
    reports = guest.hello["reports"] or {"at": guest.until("event", "report")["value"]}
    names = [row["name"] for row in guest.call("slots")["ok"]]
    assert names[0] == "low"
    assert "ram" in names
    assert any(name.startswith("image") for name in names)
    assert guest.call("read", gpa=reports["at"], size=4)["ok"] == (0x12345678).to_bytes(4, "little")
    assert "error" in guest.call("read", gpa=0xA0000, size=4)
    assert "error" in guest.call("read", gpa=0, size=1 << 30)
    assert "error" in guest.call("nonsense")
    assert guest.call("stats")["ok"]["cpu_seconds"] >= 0


def test_a_guest_that_cannot_start_says_why(cluster):
    cluster.start("huge", "int main(void) { return 0; }", memory=5000)
    result = cluster.connect("huge").result()
    assert result["outcome"] == "error"
    assert "multiple of 4096" in result["message"]


def test_a_killed_guest_is_reported_by_its_parent(cluster):
    pid = cluster.start("one", FOREVER)
    guest = cluster.connect("one")
    assert guest.hello["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    assert cluster.hear() == {"exited": "one", "pid": pid, "status": signal.SIGKILL}


def test_foreground_ends_with_its_supervisor_and_is_cleaned_up(folder):
    cluster = Cluster(folder, foreground=True)
    pids = [cluster.start(name, source) for name, source in (("a", FOREVER), ("b", SPINNING))]
    cluster.link.close()
    cluster.process.wait(20)
    assert all(gone(pid) for pid in pids)
    assert not folder.exists()


def test_background_waits_for_the_next_supervisor(folder):
    cluster = Cluster(folder, foreground=False)
    living = cluster.start("living", FOREVER)
    dying = cluster.start("dying", FOREVER)
    cluster.connect("dying")
    cluster.link.close()
    deadline = time.monotonic() + 10
    while not (folder / "warm.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(dying, signal.SIGKILL)
    assert gone(dying) or True
    link = warm.connect(str(folder))
    link.settimeout(20)
    first = msgpack.unpackb(link.recv(1 << 20))
    assert first["children"]["living"] == living
    if "dying" not in first["children"]:
        assert msgpack.unpackb(link.recv(1 << 20))["exited"] == "dying"
    guest = cluster.connect("living")
    assert guest.hello["state"] == "running"
    guest.stop()
    link.send(msgpack.packb({"quit": True}))
    cluster.process.wait(20)
    assert gone(living)


def test_a_full_log_is_rotated(cluster):
    source = 'int main(void) { for (int i = 0; i < 4000; i++) guest_print("line %d\\n", i); return 0; }'
    cluster.start("talker", source, log_limit=10000)
    cluster.connect("talker").result()
    log, old = (cluster.folder / "logs" / name for name in ("talker.log", "talker.log.1"))
    assert log.read_text().endswith("line 3999\n")
    assert 10000 <= old.stat().st_size < 20000
    assert log.stat().st_size < 20000
