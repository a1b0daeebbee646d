"""A real gdb on a Linux guest: its kernel's functions by name, backtraces by its own tables, two vCPUs as threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hostd import Host
from hostd.host import Completed

pytestmark = pytest.mark.timeout(900)
WAIT = 300.0
GDB_TIME = 150.0

FILE = """
[cluster]
name = "linux-gdb"
[guest.a]
kernel = "debian-cloud"
memory = "128MiB"
vcpus = 2
"""
WORK = "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; done > /tmp/out; wc -l < /tmp/out; tail -n 1 /tmp/out"

SESSION = (
    "set pagination off",
    "set width 0",
    "info threads",
    "break vfs_write",
    "continue",
    "backtrace",
    "print/x *(int *)$rip",
    "stepi",
    "x/i $pc",
    "delete",
    "hbreak ksys_write",
    "continue",
    "delete",
    "watch *(unsigned long *)&jiffies_64",
    "continue",
    "backtrace 3",
    "delete",
    'eval "monitor where %p", $pc',
    "detach",
)


def gdb(*commands: str) -> str:
    """Run gdb on the guest with these commands; return what it says."""
    arguments = [argument for command in commands for argument in ("-ex", command)]
    started = [sys.executable, "-m", "hostd.cli", "gdb", "linux-gdb/a", "--", "-nx", "-batch", *arguments]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            return process.communicate(timeout=GDB_TIME)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"gdb did not come to its end: {process.communicate()[0]}")


def test_a_kernel_is_debugged(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(FILE)
    with Host() as host:
        cluster = host.up(tmp_path / "c.toml")
        try:
            guest = cluster.guests["a"]
            assert guest.exec("true", wait=WAIT).exit_code == 0
            done: list[Completed] = []
            worker = threading.Thread(target=lambda: done.append(guest.exec("sh", "-c", WORK, wait=WAIT)))
            worker.start()
            said = gdb(*SESSION)
            print(said)
            # What is read without stopping it, by the kernel's own name for it.
            line = [sys.executable, "-m", "hostd.cli", "mem", "read", "linux-gdb/a", "--virtual", "linux_banner", "32"]
            dump = subprocess.run(line, capture_output=True, text=True, timeout=WAIT, check=True).stdout
            assert "|Linux version 6.|" in dump.replace("\n", "")
            # Two vCPUs.
            assert "vCPU 0, ring" in said
            assert "vCPU 1, ring" in said
            # The break, and the way there: the system call's entry is at the bottom.
            assert "Breakpoint 1, 0x" in said
            frames = said[said.index("#0 ") :]
            assert frames.index(" vfs_write ") < frames.index(" ksys_write ") < frames.index(" do_syscall_64 ")
            # A hardware breakpoint, and a watchpoint.
            assert "Breakpoint 2, 0x" in said
            assert "Hardware watchpoint 3: *(unsigned long *)&jiffies_64" in said
            assert "New value = " in said
            assert ", slot kernel.text + 0x" in said
            assert "[Inferior 1 (Remote target) detached]" in said
            # The guest goes on, and has lost nothing.
            assert guest.exec("touch", "/tmp/enough", wait=WAIT).exit_code == 0
            worker.join(WAIT)
            lines, last = done[0].stdout.split()
            assert lines == last, done
        finally:
            cluster.down()
