"""hostd net and hostd capture, on a real switch process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import net
from hostd.cli import main
from net import naming, requests
from net.client import Client
from net.process import Configuration, spawn

ROOT = pathlib.Path(__file__).parent.parent.parent
LIMIT = 30.0
BROADCAST = b"\xff" * 6
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (apt: tshark)")
needs_dpdk = pytest.mark.skipif(
    shutil.which("dpdk-testpmd") is None or os.geteuid() != 0,
    reason="dpdk-testpmd is not installed, or this is not root",
)
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")


@pytest.fixture
def switch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The switch of c/lan, in a runtime folder of the test's own."""
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path))
    process, connection = spawn(Configuration("c", "lan", spin=20))
    with Client(connection) as client:
        yield client
    assert process.wait(LIMIT) == 0
    assert naming.networks() == []


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hostd.cli", *map(str, arguments)]


@dataclass
class Done:
    stdout: str
    stderr: str


def hostd(*arguments: object, code: int = 0) -> Done:
    """Run a command in this process, which takes less time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            found = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse's
            found = int(ended.code or 0)
    done = Done(out.getvalue(), err.getvalue())
    assert found == code, done.stderr
    return done


def complaint(*arguments: object) -> str:
    """Return the one sentence of a command that fails."""
    done = hostd(*arguments, code=1)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


def frame(number: int, payload: bytes = b"", to: bytes = BROADCAST) -> bytes:
    return to + b"\2\0\0\0\0" + bytes([number]) + b"\x88\xb5" + payload


@contextlib.contextmanager
def traffic() -> Iterator[None]:
    """Let a and b exchange valid IPv4 frames, all the time."""
    ended = threading.Event()
    echo = bytes.fromhex("4500001c00000000400166df0a0000010a0000020800f7ff00000000")

    def send() -> None:
        while not ended.is_set():
            a.send(b"\2\0\0\0\0\2\2\0\0\0\0\1\x08\x00" + echo)
            b.send(b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\x00" + echo)
            for port in (a, b):
                with contextlib.suppress(net.PortTimeout):
                    port.recv_many(timeout=0)
            time.sleep(0.001)

    with net.attach("c/lan", name="a") as a, net.attach("c/lan", name="b") as b:
        sending = threading.Thread(target=send)
        sending.start()
        try:
            yield
        finally:
            ended.set()
            sending.join()


def test_ls(switch: Client) -> None:
    switch.call(requests.add_vhost("guest"))
    assert hostd("net", "ls").stdout.splitlines()[1].split() == ["c/lan", "1500", "1", "0", str(switch.hello["pid"])]
    [known] = json.loads(hostd("net", "ls", "--json").stdout)
    assert (known["network"], known["ports"], known["mtu"]) == ("c/lan", 1, 1500)


def test_ls_tells_of_a_switch_that_was_killed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path))
    process, connection = spawn(Configuration("c", "lan"))
    with Client(connection):
        process.kill()
        process.wait()
    assert "c/lan" in hostd("net", "ls").stdout
    assert "no switch runs" in hostd("net", "ls").stdout
    assert "no switch runs" in json.loads(hostd("net", "ls", "--json").stdout)[0]["error"]
    shutil.rmtree(tmp_path / "net")
    assert hostd("net", "ls").stdout.startswith("no network has a switch")
    assert json.loads(hostd("net", "ls", "--json").stdout) == []


def test_show(switch: Client) -> None:
    assert "no address has been learnt" in hostd("net", "show", "c/lan").stdout
    with net.attach("c/lan", name="a", mac=b"\2\0\0\0\0\1", rate=10**9) as a, net.attach("c/lan", name="b") as b:
        a.send(frame(1, b"hello"))
        a.send(frame(9, b"forged"))
        assert b.recv(LIMIT).endswith(b"hello")
        text = hostd("net", "show", "c/lan").stdout
        assert f"c/lan: MTU 1500, switch process {switch.hello['pid']}\n" in text
        line = next(line for line in text.splitlines() if line.startswith("a "))
        assert line.split()[:6] == ["a", "ring", "up", "02:00:00:00:00:01", "1,000,000,000", "B/s"]
        assert line.endswith("1 spoofed")
        assert "02:00:00:00:00:01        a" in text
        found = json.loads(hostd("net", "show", "c/lan", "--json").stdout)
        [known] = [port for port in found["ports"] if port["name"] == "a"]
        assert known["counters"]["frames_in"] == 2
        assert known["counters"]["drops"]["spoofed"] == 1
        assert known["mac"] == "02:00:00:00:00:01"
        assert [(address["mac"], address["port"]) for address in found["addresses"]] == [("02:00:00:00:00:01", "a")]


def test_watch(switch: Client) -> None:
    with net.attach("c/lan", name="a"):
        asked = command("net", "show", "c/lan", "--watch", "--json")
        with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True, cwd=ROOT) as watching:
            assert watching.stdout is not None
            looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
            watching.send_signal(signal.SIGINT)
            assert watching.wait(LIMIT) == 130
        assert looks[1]["rates"]["a"]["frames_in"] == 0
        ours, theirs = pty.openpty()
        with subprocess.Popen(command("net", "show", "c/lan", "-w"), stdout=theirs, cwd=ROOT) as watching:
            os.close(theirs)
            text = b""
            while b"address" not in text:
                text += os.read(ours, 4096)
            assert b"c/lan: MTU 1500" in text
            watching.send_signal(signal.SIGINT)
            watching.wait(LIMIT)
        os.close(ours)


def test_attach_and_remove(switch: Client) -> None:
    switch.call(requests.add_vhost("guest"))
    done = hostd("net", "attach", "c/lan")
    assert "port qemu-0 is there until `hostd net attach c/lan --name qemu-0 --remove`" in done.stderr
    path = naming.vhost_path("c", "lan", "qemu-0")
    assert path.is_socket()
    assert f"-chardev socket,id=net-qemu-0,path={path},reconnect=1" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    known = json.loads(
        hostd("net", "attach", "c/lan", "--for", "dpdk", "--mac", "02:00:00:00:00:07", "--fixed", "--json").stdout
    )
    assert (known["port"], known["mac"]) == ("dpdk-0", "02:00:00:00:00:07")
    assert any(f"path={known['path']},mac=02:00:00:00:00:07" in argument for argument in known["arguments"])
    ports = {port["name"]: port for port in switch.call(requests.show())["ports"]}
    assert ports["dpdk-0"]["mac"] == bytes([2, 0, 0, 0, 0, 7])
    assert (ports["qemu-0"]["attached"], ports["guest"]["attached"]) == (True, False)
    assert "has a port 'qemu-0' already" in complaint("net", "attach", "c/lan", "--name", "qemu-0")
    assert hostd("net", "attach", "c/lan", "--name", "qemu-0", "--remove").stdout == "removed qemu-0\n"
    assert not path.exists()
    assert "has no port 'qemu-0'; those attached to it: dpdk-0" in complaint(
        "net", "attach", "c/lan", "--name", "qemu-0", "--remove"
    )
    assert "needs its port 'guest'" in complaint("net", "attach", "c/lan", "--name", "guest", "--remove")
    assert "which port?" in complaint("net", "attach", "c/lan", "--remove")
    assert "--memory: 'x' is no size" in complaint("net", "attach", "c/lan", "--memory", "x")
    assert [port["name"] for port in switch.call(requests.show())["ports"]] == ["dpdk-0", "guest"]


@needs_qemu
def test_qemu_takes_the_arguments(switch: Client) -> None:
    """It connects and finds the device's offer; no guest runs in it."""
    arguments = json.loads(
        hostd("net", "attach", "c/lan", "--name", "vm", "--memory", "64MiB", "--queues", "2", "--json").stdout
    )["arguments"]
    qemu = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio", *arguments]
    with subprocess.Popen(qemu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "QMP" in process.stdout.readline()
        process.stdin.write('{"execute": "qmp_capabilities"} {"execute": "query-chardev"} {"execute": "quit"}\n')
        process.stdin.flush()
        assert "return" in process.stdout.readline()
        chardevs = json.loads(process.stdout.readline())["return"]
        socket = next(chardev for chardev in chardevs if chardev["label"] == "net-vm")
        assert "disconnected" not in socket["filename"]
        assert process.wait(LIMIT) == 0


@needs_dpdk
def test_dpdk_takes_the_arguments(switch: Client) -> None:
    """Its virtio-user driver joins, and sends."""
    name = f"dpdk-{os.getpid()}"
    found = json.loads(hostd("net", "attach", "c/lan", "--for", "dpdk", "--name", name, "--json").stdout)
    testpmd = ["dpdk-testpmd", "--lcores=0@0,1@0", "--no-huge", "-m", "64", *found["arguments"]]
    testpmd += ["--", "--forward-mode=txonly", "--auto-start", "--total-num-mbufs=2048", "--no-mlockall"]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        with (
            net.attach("c/lan", name="probe") as probe,
            subprocess.Popen(testpmd, stdin=subprocess.PIPE, **output) as process,
        ):
            try:
                assert probe.recv(LIMIT)[6:12].hex(":") == found["mac"]
            finally:
                process.terminate()
    finally:
        shutil.rmtree(f"/var/run/dpdk/{name}", ignore_errors=True)
    [known] = json.loads(hostd("net", "show", "c/lan", "--json").stdout)["ports"]
    assert (known["name"], known["front"]["sessions"], known["front"]["errors"]) == (name, 1, {})


@needs_tshark
def test_capture_to_a_file(switch: Client, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "frames.pcapng"
    with traffic():
        done = hostd("capture", "c/lan", "-w", file, "--count", 200)
        assert done.stderr == "200 frames\n"
    fields = ["-e", "frame.interface_name", "-e", "eth.src", "-e", "icmp.type", "-e", "_ws.malformed"]
    read = subprocess.run(
        ["tshark", "-r", file, "-T", "fields", *fields], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    rows = [line.split("\t") for line in read.stdout.splitlines()]
    assert len(rows) == 200
    assert {tuple(row[:3]) for row in rows} == {("a", "02:00:00:00:00:01", "8"), ("b", "02:00:00:00:00:02", "8")}
    assert all(row[3:] in ([], [""]) for row in rows)


@needs_tshark
def test_capture_live_into_tshark(switch: Client) -> None:
    with traffic():
        asked = command("capture", "c/lan", "-w", "-", "--port", "a", "--mac", "02:00:00:00:00:02")
        with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as capturing:
            read = subprocess.run(
                ["tshark", "-l", "-i", "-", "-c", "20", "-T", "fields", "-e", "eth.src", "-e", "_ws.malformed"],
                stdin=capturing.stdout,
                capture_output=True,
                text=True,
                check=True,
                timeout=LIMIT,
            )
            assert capturing.stdout is not None
            capturing.stdout.close()
            assert capturing.stderr is not None
            assert b"Traceback" not in capturing.stderr.read()
            assert capturing.wait(LIMIT) in (0, 1)
    sources = [line.split("\t")[0] for line in read.stdout.splitlines()]
    assert len(sources) == 20
    assert set(sources) == {"02:00:00:00:00:01", "02:00:00:00:00:02"}


def test_capture_as_text(switch: Client) -> None:
    with traffic():
        lines = hostd("capture", "c/lan", "--count", 5).stdout.splitlines()
        assert len(lines) == 5
        assert any("a > b  02:00:00:00:00:01 > 02:00:00:00:00:02  IPv4 42" in line for line in lines)
        known = [json.loads(line) for line in hostd("capture", "c/lan", "--count", 3, "--json").stdout.splitlines()]
        assert [(one["size"], len(bytes.fromhex(one["data"])), one["lost"]) for one in known] == [(42, 42, 0)] * 3
        assert {one["from"] for one in known} <= {"a", "b"}
        short = json.loads(hostd("capture", "c/lan", "--count", 1, "--snap", 20, "--json").stdout)
        assert (short["size"], len(short["data"])) == (42, 40)


def test_a_capture_ends_when_it_is_told(switch: Client, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "none.pcapng"
    start = time.monotonic()
    done = hostd("capture", "c/lan", "--seconds", 0.2, "-w", file, "--json")
    assert json.loads(done.stdout) == {"file": str(file), "frames": 0, "lost": 0}
    assert time.monotonic() - start >= 0.2
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command("capture", "c/lan"), stderr=subprocess.PIPE, text=True, cwd=ROOT) as capturing:
            deadline = time.monotonic() + LIMIT
            while not switch.call(requests.show())["captures"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.1)  # Until it is at its work.
            capturing.send_signal(number)
            assert capturing.communicate(timeout=LIMIT)[1] == "0 frames\n"
            assert capturing.returncode == 0


def test_captures_that_cannot_be(switch: Client, tmp_path: pathlib.Path) -> None:
    assert "there is no port 'x' (there: none)" in complaint("capture", "c/lan", "--port", "x")
    assert "network c/wan: no switch runs" in complaint("capture", "c/wan")
    assert "'lan' is no network" in complaint("capture", "lan")
    assert "No such file or directory" in complaint("capture", "c/lan", "-w", tmp_path / "no" / "file")
    assert "has the output already" in hostd("capture", "c/lan", "-w", "-", "--json", code=1).stderr
    for arguments in (("--mac", "1:2"), ("--count", "0"), ("--count", "x"), ("--seconds", "-1"), ("--seconds", "nan")):
        assert "error: argument" in hostd("capture", "c/lan", *arguments, code=2).stderr
    assert switch.call(requests.show())["captures"] == []
