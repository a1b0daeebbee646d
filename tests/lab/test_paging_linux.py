"""Linux guests whose pages leave: others of their tasks go on while one waits for a page, and all comes back."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from linuxguest import MIB, ScriptGuest, script_archive
from slow_pager import SlowPager
from swapfile import swapping

from guestlib.linux.build import compile_static
from hostd import Host
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster, Completed, Guest
from hostd.images import packages
from hostd.images.cpio import Archive

pytestmark = pytest.mark.timeout(900)
WAIT = 300.0
DELAY = 2.0
PROGRAM = Path(__file__).parent / "programs" / "waiter.c"
SCRIPT = """
grep HYP /proc/interrupts | sed 's/^/before /'
for at in /sys/class/virtio-ports/*; do [ "$(cat $at/name)" = go ] && port=/dev/${at##*/}; done
waiter < $port
grep HYP /proc/interrupts | sed 's/^/after /'
"""
FILE = """
[cluster]
name = "linux-paging"
[guest.a]
kernel = "debian-cloud"
memory = "192MiB"
"""
FILLED = 64 * MIB


def test_other_tasks_go_on_while_one_waits_for_a_page(tmp_path: Path) -> None:
    package = packages.fetch(packages.kernel_package("debian-cloud"))
    initrd = script_archive(package, SCRIPT, tmp_path / "initrd")
    archive = Archive()
    archive.file("bin/waiter", compile_static([PROGRAM], tmp_path / "waiter").read_bytes(), 0o755)
    with initrd.open("ab") as file:
        file.write(archive.finish())
    guest = ScriptGuest(tmp_path, package, initrd, ports=["go"])
    try:
        guest.start()
        guest.wait_for("pages are known")
        pages = [int(page, 16) for page in re.findall(r"page (0x\w+)", guest.log)]
        row = guest.guest.table.find(pages[0])
        assert row is not None
        assert len(pages) == 3
        assert all(row.gpa <= page < row.end for page in pages)
        pager = SlowPager(row.hva, row.size, DELAY)
        try:
            addresses = [row.hva + page - row.gpa for page in pages]
            for address in addresses:
                pager.take(address)
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(tmp_path / "guests" / "g.go.sock"))
                link.sendall(b"g")
                guest.wait_for("after ")
            log = guest.join()
        finally:
            pager.close()
    finally:
        guest.close()
    waited, turns, wrong = map(int, re.findall(r"waited (\d+) ms, turns (\d+), wrong (\d+)", log)[0])
    assert sorted(pager.served) == sorted(addresses)
    assert wrong == 0
    assert waited >= 3 * DELAY * 1000 * 0.9
    assert turns >= 30, log
    # Each page that came was told of by an interrupt of its own.
    before, after = (int(count) for count in re.findall(r"(?:before|after)\s+HYP:\s+(\d+)", log))
    assert after - before >= 3, log


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BackgroundCluster]:
    (tmp_path / "c.toml").write_text(FILE)
    with Host() as host, swapping(tmp_path):
        made = host.up(tmp_path / "c.toml")
        try:
            yield made
        finally:
            made.down()


def run(cluster: BackgroundCluster, command: str) -> Completed:
    return cluster.guests["a"].exec("sh", "-c", command, wait=WAIT)


def until_it_answers(guest: Guest) -> None:
    """Once it has started its process shares its kernel's code again, which takes an emulated processor a while."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            guest.slots()
        except ControlError:
            assert time.monotonic() < deadline
            continue
        return


def test_a_linux_guest_leaves_and_comes_back(cluster: BackgroundCluster) -> None:
    guest = cluster.guests["a"]
    made = run(cluster, "mount -t tmpfs tmpfs /tmp; dd if=/dev/urandom of=/tmp/x bs=1M count=64 && md5sum /tmp/x")
    assert made.exit_code == 0, made

    def resident() -> int:
        return sum(row["resident"] for row in guest.slots() if row["backing"] in ("anonymous", "image"))

    until_it_answers(guest)
    before = resident()
    assert before >= FILLED
    done = guest.pageout()
    assert done.left >= FILLED * 9 // 10
    assert done.swapped >= FILLED * 9 // 10
    assert resident() <= before - FILLED * 9 // 10
    again = run(cluster, "md5sum /tmp/x")
    assert again.stdout == made.stdout
    assert resident() >= FILLED
