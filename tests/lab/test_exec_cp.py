"""hostd exec, cp, console, logs and stop on Linux guests."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd import Host
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("HOSTD_LAB" not in os.environ, reason="needs a KVM that runs Linux guests: the lab"),
]

LIMIT = 300.0
CLUSTER = """
[guest.debian]
kernel = "debian-cloud"
root = "debian"
memory = "192MiB"

[guest.small]
kernel = "debian-cloud"
memory = "256MiB"

[guest.once]
kernel = "debian-cloud"
memory = "128MiB"
command = ["sh", "-c", "echo once; exit 9"]

[guest.doomed]
kernel = "debian-cloud"
memory = "128MiB"

[guest.stubborn]
kernel = "debian-cloud"
memory = "128MiB"
command = ["sh", "-c", "trap '' TERM HUP; echo deaf; while :; do sleep 1; done"]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundCluster]:
    folder = tmp_path_factory.mktemp("agents")
    file = folder / "agents.toml"
    file.write_text(CLUSTER)
    # Not a folder of pytest's: a Unix socket's path has at most 107 bytes.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ht") as runtime:
        patch.setenv("HOSTD_RUNTIME_DIR", runtime)
        with Host() as host:
            cluster = host.up(file)
            try:
                yield cluster
            finally:
                cluster.down()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hostd.cli", *map(str, arguments)]


def hostd(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, timeout=LIMIT, check=False)


def test_a_command_s_input_output_errors_and_status(cluster: BackgroundCluster) -> None:
    done = hostd("exec", "--wait", LIMIT, "debian", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\n", b"err\n")
    done = hostd("exec", f"{cluster.name}/small", "--", "nosuch")
    assert (done.returncode, done.stderr) == (127, b"hostd exec: nosuch: No such file or directory\n")


def test_python_and_guestlib_are_there(cluster: BackgroundCluster) -> None:
    script = "import guestlib; print(sorted(guestlib.attach().regions))"
    done = cluster.guests["debian"].exec("python3", "-c", script, wait=LIMIT)
    assert (done.exit_code, done.stdout, done.stderr) == (0, b"[]\n", b"")


def test_input_goes_through_a_guest_whole(cluster: BackgroundCluster) -> None:
    data = os.urandom(1 << 20)
    done = cluster.guests["small"].exec("cat", stdin=data, wait=LIMIT)
    assert (done.exit_code, done.stdout, done.stderr) == (0, data, b"")


def test_a_large_file_goes_in_and_out_unchanged(cluster: BackgroundCluster, tmp_path: Path) -> None:
    small = cluster.guests["small"]
    data = os.urandom(1 << 20) * 50
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "large").chmod(0o640)
    assert small.copy_in(tmp_path / "large", "/root", wait=LIMIT).size == len(data)
    digest = hashlib.sha256(data).hexdigest()
    done = small.exec("sh", "-c", "sha256sum /root/large; stat -c %a /root/large")
    assert done.stdout.decode().split() == [digest, "/root/large", "640"]
    assert small.copy_out("/root/large", tmp_path / "back").size == len(data)
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest
    assert small.exec("rm", "/root/large").exit_code == 0


def test_a_folder_goes_in_from_guest_to_guest_and_out(cluster: BackgroundCluster, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/run.sh").write_text("echo ran\n")
    (tree / "deep/run.sh").chmod(0o755)
    (tree / "link").symlink_to("deep/run.sh")
    done = hostd("cp", "--wait", LIMIT, tree, "small:/root")
    assert (done.returncode, done.stdout) == (0, b"copied 4 files, 9 bytes\n"), done.stderr
    assert cluster.guests["small"].exec("sh", "/root/tree/link").stdout == b"ran\n"
    assert hostd("cp", "--wait", LIMIT, "small:/root/tree", "debian:/srv").returncode == 0
    assert cluster.guests["debian"].copy_out("/srv/tree", tmp_path / "back").files == 4
    assert (tmp_path / "back/link").readlink() == Path("deep/run.sh")
    assert (tmp_path / "back/deep/run.sh").stat().st_mode & 0o777 == 0o755
    done = hostd("cp", "small:/nosuch", tmp_path)
    assert (done.returncode, done.stderr) == (1, b"hostd cp: small:/nosuch: No such file or directory\n")


def test_a_terminal_in_a_guest(cluster: BackgroundCluster) -> None:
    with attached("exec", "--wait", LIMIT, "small", "--", "sh", "-c", "stty size; read word; echo got $word") as shown:
        shown.until(b"24 80")
        shown.type(b"key\r")
        shown.until(b"got key")
        assert shown.process.wait(LIMIT) == 0


def test_the_console_is_attached_to_and_left_and_the_guest_goes_on(cluster: BackgroundCluster) -> None:
    assert cluster.guests["small"].exec("sh", "-c", "echo from inside > /dev/console", wait=LIMIT).exit_code == 0
    for _ in range(2):
        with attached("console", "small") as shown:
            shown.until(b"from inside")
            shown.type(b"\x1d")
            assert shown.process.wait(LIMIT) == 0
    with attached("console", "small") as shown:
        shown.until(b"Ctrl-]")
        assert cluster.guests["small"].exec("sh", "-c", "echo and again > /dev/console").exit_code == 0
        shown.until(b"and again")
        shown.type(b"\x1d")
        assert shown.process.wait(LIMIT) == 0
    assert "and again" in cluster.guests["small"].log
    assert cluster.guests["small"].exec("true").exit_code == 0


def test_a_guest_s_own_command_s_status_is_the_guest_s(cluster: BackgroundCluster) -> None:
    result = cluster.wait("once", timeout=LIMIT).guests["once"]
    assert (result.outcome, result.exit_code) == ("exit", 9)
    assert result.message == "guest once: its command ended with status 9"
    assert "once\n" in cluster.guests["once"].log.replace("\r", "")


def test_a_guest_that_is_killed_in_the_middle_is_told(cluster: BackgroundCluster) -> None:
    doomed = cluster.guests["doomed"]
    with attached("exec", "--wait", LIMIT, "doomed", "--", "sh", "-c", "echo ready; sleep 1000") as shown:
        shown.until(b"ready")
        doomed.kill()
        shown.until(b"hostd exec: guest doomed: ")
        assert shown.process.wait(LIMIT) == 125
    assert doomed.result.outcome == "killed"


def test_stopping_is_orderly_and_then_forced(cluster: BackgroundCluster) -> None:
    small, debian, stubborn = (cluster.guests[name] for name in ("small", "debian", "stubborn"))
    daemon = "trap 'echo closing > /dev/console; exit' TERM; echo serving > /dev/console; while :; do sleep 0.1; done"
    started = small.exec("sh", "-c", f'setsid sh -c "{daemon}" < /dev/null > /dev/null 2>&1 &', wait=LIMIT)
    assert started.exit_code == 0
    with attached("console", "small") as shown:
        shown.until(b"serving")
        small.stop(grace=LIMIT)
        shown.until(b"ended")
        assert shown.process.wait(LIMIT) == 0
    assert (small.result.outcome, small.result.exit_code) == ("exit", 0)
    assert "closing" in small.log
    with pytest.raises(ControlError, match="guest small: is not running"):
        small.exec("true")
    assert stubborn.exec("true", wait=LIMIT).exit_code == 0
    assert debian.exec("true", wait=LIMIT).exit_code == 0
    assert hostd("stop", "--grace", 0, "debian").returncode == 0
    assert debian.result.outcome == "killed"
    # Processes that won't hear are killed after half of the time.
    stubborn.stop(grace=60)
    assert stubborn.result.outcome == "exit"


class Attached:
    """`hostd` with a terminal."""

    def __init__(self, arguments: tuple[object, ...]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, wanted: bytes) -> bytes:
        """Wait until it shows `wanted`."""
        seen = b""
        deadline = time.monotonic() + LIMIT
        while wanted not in seen:
            assert select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
            try:
                seen += os.read(self._ours, 4096)
            except OSError:
                raise AssertionError(seen) from None
        return seen

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def attached(*arguments: object) -> Attached:
    return Attached(arguments)
