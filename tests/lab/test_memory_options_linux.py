"""What a Linux guest frees goes back to the host, and a guest has huge pages inside and outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostd import Host
from hostd.host import BackgroundCluster, Completed

pytestmark = pytest.mark.timeout(900)
WAIT = 300.0
MIB, HUGE = 1 << 20, 2 << 20
PROGRAM = Path(__file__).parent / "programs" / "huge.c"
RESERVED = Path("/proc/sys/vm/nr_hugepages")
FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")

FILE = """
[cluster]
name = "linux-memory"
[guest.a]
kernel = "debian-cloud"
memory = "320MiB"
cmdline = "hugepages=16"
thp = true
files = { "/huge" = "PROGRAM" }
"""

RESERVED_FILE = """
[cluster]
name = "linux-reserved"
[network.lan]
subnet = "10.9.0.0/24"
[guest.a]
kernel = "debian-cloud"
memory = "256MiB"
cmdline = "hugepages=8"
hugetlb = true
networks = ["lan"]
files = { "/huge" = "PROGRAM" }
"""


def sh(cluster: BackgroundCluster, command: str) -> Completed:
    done = cluster.guests["a"].exec("sh", "-c", command, wait=WAIT)
    assert done.exit_code == 0, done
    return done


def settles(done: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture
def reserved() -> Iterator[None]:
    """The lab has as many huge pages as this guest's memory takes, and gives them back."""
    RESERVED.write_text("160")
    try:
        assert int(RESERVED.read_text()) == 160, "the lab has too little memory in one piece"
        yield
    finally:
        RESERVED.write_text("0")


def resident(cluster: BackgroundCluster) -> int:
    return sum(row["resident"] for row in cluster.guests["a"].slots() if row["name"].startswith("ram"))


def hostd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hostd.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_what_is_freed_goes_back_and_huge_pages_work(tmp_path: Path) -> None:
    program = tmp_path / "huge"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(PROGRAM)], check=True)
    (tmp_path / "c.toml").write_text(FILE.replace("PROGRAM", str(program)))
    with Host() as host:
        cluster = host.up(tmp_path / "c.toml")
        try:
            sh(cluster, "head -c 120000000 /dev/zero > /tmp/full; sync")
            full = resident(cluster)
            assert full > 120 * MIB
            sh(cluster, "rm /tmp/full")
            freed = time.monotonic()
            settles(lambda: resident(cluster) < full - 90 * MIB)
            took = time.monotonic() - freed
            print(f"resident: {full >> 20} MiB before, {resident(cluster) >> 20} MiB {took:.1f} s after it was freed")
            told = json.loads(hostd("balloon", "linux-memory/a", "--json").stdout)
            assert told["reported"] > 90 * MIB
            assert told["guest"]["free"] > 100 * MIB
            # And what the host takes, whether the guest has used it or not.
            done = hostd("balloon", "linux-memory/a", "--target", "64MiB")
            assert done.returncode == 0, done.stderr
            settles(lambda: cluster.guests["a"].balloon()["actual"] == 64 * MIB)
            cluster.guests["a"].balloon(0)
            settles(lambda: cluster.guests["a"].balloon()["actual"] == 0)
            done = hostd("balloon", "linux-memory/a", "--target", "1TiB")
            assert done.returncode == 1
            assert "bytes can't be in its balloon; it has 335544320 bytes in all" in done.stderr

            sh(cluster, "mkdir -p /pages && mount -t hugetlbfs none /pages && chmod 755 /huge")
            said = sh(
                cluster, "/huge /pages/f 16777216 > /tmp/said & sleep 5; cat /tmp/said; grep HugePages /proc/meminfo"
            )
            lines = said.stdout.decode().split("\n")
            assert lines[0] == "0 wrong"
            assert {"HugePages_Total": "16", "HugePages_Free": "8"}.items() <= dict(
                (word.strip() for word in line.split(":")) for line in lines if line.startswith("HugePages")
            ).items()
            huge = sum(row["huge"] for row in cluster.guests["a"].slots())
            assert huge >= 16 * MIB, "the host backs the guest's huge pages with its own"
        finally:
            cluster.down()


def test_a_guest_on_reserved_pages(tmp_path: Path, reserved: None) -> None:
    """Its RAM, which a switch is given too, is the host's reserved pages, mapped as such; they are back at its end."""
    program = tmp_path / "huge"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(PROGRAM)], check=True)
    (tmp_path / "c.toml").write_text(RESERVED_FILE.replace("PROGRAM", str(program)))
    free = int(FREE.read_text())
    with Host() as host:
        cluster = host.up(tmp_path / "c.toml")
        try:
            said = sh(
                cluster,
                "mkdir -p /pages && mount -t hugetlbfs none /pages && chmod 755 /huge && "
                "(/huge /pages/f 8388608 > /tmp/said & sleep 5; cat /tmp/said)",
            )
            assert said.stdout == b"0 wrong\n"
            guest = cluster.guests["a"]
            rows = [row for row in guest.slots() if row["name"].startswith("ram") and row["size"] % HUGE == 0]
            assert sum(row["size"] for row in rows) > 200 * MIB
            huge = sum(row["huge"] for row in rows)
            assert huge == sum(row["resident"] for row in rows) > 32 * MIB
            assert guest.stats()["vm"]["pages_2m"] > 8, "KVM maps them as what they are"
            assert int(FREE.read_text()) <= free - 16
        finally:
            cluster.down()
    assert int(FREE.read_text()) == free
