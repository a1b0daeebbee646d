"""`hostd lab` from outside: what its command sees, and that nothing of it stays. Few boots: each takes seconds."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.lab import LabError, run
from hostd.lab.machine import QEMU, LabMachine, _quoted, check
from hostd.lab.run import default_memory, inside

LAB = [sys.executable, "-m", "hostd.cli", "lab"]
GIB = 1 << 30
needs_qemu = pytest.mark.skipif(
    shutil.which(QEMU) is None or "HOSTD_LAB" in os.environ, reason=f"needs {QEMU}, and not to be in the lab itself"
)
boots = pytest.mark.timeout(600)

SCRIPT = r"""
cat
echo to-stderr >&2
echo "cwd=$(pwd)"
echo "given=$GIVEN lab=$HOSTD_LAB user=$(id -u)"
python -c 'print("product", 6*7)'
echo changed > "$VICTIM"; rm -rf "$KEPT"; cat "$VICTIM"
test -e "$KEPT" || echo removed inside
echo kept > "$OUT/kept"; mkdir "$OUT/folder"; echo deep > "$OUT/folder/deep"; cat "$OUT/before"
head -c 3000000 /dev/zero | tr '\0' x > "$OUT/large"
python -m hostd.cli doctor --json > "$OUT/doctor.json"
modprobe nf_tables && grep -q ^nf_tables /proc/modules && echo nf_tables loaded
ip -o addr show lo 2>/dev/null | grep -o 'inet 127.0.0.1' || busybox ip addr show lo | grep -o 'inet 127.0.0.1'
echo 8 > /proc/sys/vm/nr_hugepages; grep HugePages_Total /proc/meminfo
exit 7
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    """Return how one command ended that looked at all there is, a folder of the host, and the one behind --out."""
    folder = tmp_path_factory.mktemp("lab")
    out = folder / "a folder, written"
    out.mkdir()
    (out / "before").write_text("was there before\n")
    (folder / "victim").write_text("as it was\n")
    (folder / "kept").mkdir()
    environment = {
        **os.environ,
        "GIVEN": "two words",
        "VICTIM": str(folder / "victim"),
        "KEPT": str(folder / "kept"),
        "OUT": str(out),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [*LAB, "--memory", "2GiB", "--cpus", "2", "--out", str(out), "--", "sh", "-c", SCRIPT],
        input="from stdin\n",
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=500,
        check=False,
    )
    return done, folder, out


@needs_qemu
@boots
def test_command(session) -> None:
    done, folder, _ = session
    assert done.returncode == 7, done.stderr
    assert done.stderr.splitlines()[-1] == "to-stderr"
    lines = done.stdout.splitlines()
    assert lines[0] == "from stdin"
    assert f"cwd={folder}" in lines
    assert "given=two words lab=1 user=0" in lines
    assert "product 42" in lines


@needs_qemu
@boots
def test_writes(session) -> None:
    done, folder, out = session
    assert {"changed", "removed inside", "was there before"} <= set(done.stdout.splitlines())
    assert (folder / "victim").read_text() == "as it was\n"
    assert (folder / "kept").is_dir()
    assert (out / "kept").read_text() == "kept\n"
    assert (out / "folder/deep").read_text() == "deep\n"
    assert (out / "large").read_bytes() == b"x" * 3_000_000


@needs_qemu
@boots
def test_machine(session) -> None:
    done, _, out = session
    checks = {check["name"]: check for check in json.loads((out / "doctor.json").read_text())["checks"]}
    assert checks["kvm"]["status"] == "ok"
    assert checks["kvm"]["text"].startswith("full")
    lines = done.stdout.splitlines()
    assert "nf_tables loaded" in lines
    assert "inet 127.0.0.1" in lines
    assert "HugePages_Total:       8" in lines


def machines(marker: Path) -> list[int]:
    """Return the processes of QEMU that export the folder `marker`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
        except OSError:
            continue
        if words and QEMU.encode() in words[0] and any(os.fsencode(marker) in word for word in words):
            found.append(int(process.name))
    return found


def wait_for(condition, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.fixture
def booting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A lab that is just booting, with a group of processes of its own."""
    process = subprocess.Popen(
        [*LAB, "--memory", "1GiB", "--out", str(tmp_path), "--", "sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        wait_for(lambda: machines(tmp_path) or process.poll() is not None, "it does not start", 120)
        assert machines(tmp_path)
        yield process, tmp_path
    finally:
        process.kill()
        process.communicate()


@needs_qemu
@boots
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_ends_with_its_process(booting, number: signal.Signals, code: int) -> None:
    process, folder = booting
    process.send_signal(number)
    assert process.wait(60) == code
    wait_for(lambda: not machines(folder), "QEMU has outlived its lab")


@needs_qemu
@boots
def test_timeout(tmp_path: Path) -> None:
    done = subprocess.run(
        [*LAB, "--timeout", "1", "--out", str(tmp_path), "--", "sleep", "1000"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 124
    assert "not done in 1 seconds" in done.stderr
    assert not machines(tmp_path)


@needs_qemu
@boots
def test_terminal() -> None:
    """A command on a terminal has one, knows its size, and gets Ctrl-C as a signal."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "101"], stdin=theirs, check=True)
    script = 'stty size; trap "echo got it; exit 9" INT; echo ready; while :; do sleep 0.1; done'
    process = subprocess.Popen(
        [*LAB, "--memory", "1GiB", "--", "sh", "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    end = time.monotonic() + 500
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                seen += os.read(ours, 4096)
            except OSError:  # Its other end is closed.
                break
            if b"ready" in seen:
                os.write(ours, b"\x03")
        assert process.wait(60) == 9
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    lines = seen.decode().split("\r\n")
    assert "33 101" in lines
    assert any("got it" in line for line in lines)


@pytest.fixture
def hidden() -> Iterator[Path]:
    """A folder of the host in a place where the lab has a file system of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@needs_qemu
@boots
def test_second_interrupt_ends_it(hidden: Path) -> None:
    script = 'trap "echo caught" INT; echo there > "$0/written"; echo ready; while :; do sleep 0.1; done'
    process = subprocess.Popen(
        [*LAB, "--memory", "1GiB", "--out", str(hidden), "--", "sh", "-c", script, str(hidden)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert (hidden / "written").read_text() == "there\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "caught\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        wait_for(lambda: not machines(hidden), "QEMU has outlived its lab")
    finally:
        process.kill()
        process.communicate()


def test_says_what_to_install(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"apt-get install .*qemu-system-x86"):
        check(GIB, 1)


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU}")
@pytest.mark.parametrize(("memory", "cpus", "complaint"), [(GIB >> 4, 1, "64 MiB is too small"), (GIB, 0, "0 CPUs")])
def test_sizes_are_checked(memory: int, cpus: int, complaint: str) -> None:
    with pytest.raises(LabError, match=complaint):
        check(memory, cpus)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("one\n\ntwo\nthree\nfour\n", "two / three / four"),
        (
            "one\nlab: no overlay\n[ 1.0] sd 0: stopping\n[ 1.1] ACPI: sleep\n[ 1.2] reboot: Power down\n",
            "lab: no overlay",
        ),
        (
            "[ 1.0] Kernel panic - not syncing: Out of memory\n" + "[ 1.1] R13: 0\n" * 99,
            "[ 1.0] Kernel panic - not syncing: Out of memory",
        ),
        ("", ""),
    ],
)
def test_last_words_are_the_reason(log: str, words: str) -> None:
    with tempfile.TemporaryFile() as file, socket.socket() as agent:
        file.write(log.encode())
        file.flush()
        with subprocess.Popen(["true"]) as process:
            assert LabMachine(process, agent, file.fileno()).last_words() == words


def test_nothing_to_run() -> None:
    with pytest.raises(LabError, match="no command"):
        run([])
    with pytest.raises(LabError, match="0 seconds"):
        run(["true"], timeout=0)
    with pytest.raises(LabError, match="/dev/null: is no folder"):
        run(["true"], out=Path("/dev/null"))


@pytest.mark.parametrize(("available", "memory"), [(64 * GIB, 8 * GIB), (6 * GIB, 3 * GIB), (GIB // 2, GIB // 2)])
def test_default_memory(tmp_path: Path, available: int, memory: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable:   {available >> 10} kB\n")
    assert default_memory(meminfo) == memory


def test_programs_of_this_python_come_first() -> None:
    here = str(Path(sys.executable).parent)
    assert inside({"PATH": "/bin"})["PATH"].split(":") == [here, "/bin"]
    assert inside({"PATH": f"{here}:/bin"})["PATH"].split(":") == [here, "/bin"]
    assert inside({"A": "b"})["A"] == "b"


def test_folders_get_through_the_kernels_command_line(tmp_path: Path) -> None:
    """What stands there is a format of printf's."""
    folder = tmp_path / "ä %s 1,2\"'\\ 0"
    text = _quoted(folder)
    assert not set(text) & set(" %\"',")
    assert subprocess.run(["printf", text], capture_output=True, check=True).stdout == os.fsencode(folder)
