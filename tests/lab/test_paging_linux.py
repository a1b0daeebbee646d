"""Linux guests whose pages leave: others of their tasks go on while one waits for a page, and all comes back."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
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
from hostd.supervisor.errors import SupervisorError

pytestmark = pytest.mark.timeout(900)
WAIT = 300.0
DELAY = 2.0
PROGRAM = Path(__file__).parent / "programs" / "waiter.c"
PROGRAMS = Path(__file__).parents[1] / "supervisor" / "programs"
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
FILLED = 32 * MIB


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


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Give a folder on a disk: in the lab all files are in memory."""
    disk, place = folder / "disk", folder / "paged"
    disk.touch()
    os.truncate(disk, 512 * MIB)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture(params=["swap", "file"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BackgroundCluster]:
    """A guest whose pages can leave: to swap, or to the file that its RAM is in."""
    (tmp_path / "c.toml").write_text(FILE)
    with Host() as host, contextlib.ExitStack() as stack:
        if request.param == "swap":
            stack.enter_context(swapping(tmp_path))
            made = host.up(tmp_path / "c.toml")
        else:
            place = stack.enter_context(mounted(tmp_path))
            made = host.up(tmp_path / "c.toml", overrides=[f"guest.a.paged={str(place)!r}"])
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
    made = run(cluster, "mount -t tmpfs tmpfs /tmp; dd if=/dev/urandom of=/tmp/x bs=1M count=32 && md5sum /tmp/x")
    assert made.exit_code == 0, made

    def resident() -> int:
        return sum(row["resident"] for row in guest.slots() if row["backing"] in ("anonymous", "image", "paged"))

    until_it_answers(guest)
    before = resident()
    assert before >= FILLED
    done = guest.pageout()
    assert done.left >= FILLED * 9 // 10
    assert resident() <= before - FILLED * 9 // 10
    again = run(cluster, "md5sum /tmp/x")
    assert again.stdout == made.stdout
    assert resident() >= FILLED


POLICY, LIMIT, RATIO = (Path("/proc/sys/vm", f"overcommit_{name}") for name in ("memory", "kbytes", "ratio"))
LARGE = """
[guest.large]
program = "sleeper.c"
args = ["1"]
memory = "4MiB"
"""


def test_a_host_that_promises_no_more_than_it_has(tmp_path: Path) -> None:
    (tmp_path / "sleeper.c").symlink_to(PROGRAMS / "sleeper.c")
    (tmp_path / "large.toml").write_text(LARGE)
    policy, ratio = POLICY.read_text(), RATIO.read_text()
    meminfo = Path("/proc/meminfo").read_text()
    promised = int(meminfo.partition("Committed_AS:")[2].split()[0])
    LIMIT.write_text(str(promised + (4 << 20)))
    POLICY.write_text("2")
    try:
        with Host() as host:
            assert host.run(tmp_path / "large.toml").ok
            with pytest.raises(
                SupervisorError, match=r"guest large: slot ram .*\(vm.overcommit_memory is 2\): \d+ of \d+"
            ):
                host.run(tmp_path / "large.toml", overrides=["guest.large.memory=64GiB"])
    finally:
        POLICY.write_text(policy)
        RATIO.write_text(ratio)
    with Host() as host:
        assert host.run(tmp_path / "large.toml", overrides=["guest.large.memory=64GiB"]).ok
