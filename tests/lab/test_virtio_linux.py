"""Stock Linux guests and their virtio devices: disks, ports, entropy, the balloon, a root in the host's page cache."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from linuxguest import MIB, ScriptGuest, script_archive

from hostd.images import packages
from hostd.memory.smaps import usage

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif("HOSTD_LAB" not in os.environ, reason="needs a KVM that runs Linux guests: the lab"),
]

DISK = 4 * MIB
IMAGE = 24 * MIB
PORT = """
port() { for at in /sys/class/virtio-ports/*; do [ "$(cat $at/name)" = "$1" ] && echo /dev/${at##*/}; done; }
"""
DEVICES = (
    PORT
    + """
sums() { md5sum /dev/vda /dev/vdb /dev/vdc | sed 's/^/sum /'; }
sums
for disk in vda vdb vdc; do
    printf wxyz | dd of=/dev/$disk bs=4 seek=5 conv=fsync 2>/dev/null && echo "wrote $disk"
done
blkdiscard -o 1048576 -l 1048576 /dev/vdb && echo discarded
echo 3 > /proc/sys/vm/drop_caches
sums
echo "serial $(cat /sys/block/vda/serial)"
echo "read-only $(cat /sys/block/vda/ro) $(cat /sys/block/vdb/ro)"
mount -t ext4 -o dax=always /dev/pmem0 /mnt && echo "mounted $(grep /mnt /proc/mounts)"
echo "from the guest" > /mnt/file && sync && umount /mnt && echo flushed
head -c 4096 /dev/hwrng | md5sum | sed 's/^/random /'
echo "ports ready"
exec 3<> $(port test)
while [ ! -s /tmp/heard ]; do cat <&3 > /tmp/heard; sleep 0.1; done # Without a client it is at its end.
wc -c < /tmp/heard | sed 's/^/heard /'
md5sum < /tmp/heard | sed 's/^/heard sum /'
cat /tmp/heard >&3
exec 3>&-
echo "console on $(cat /sys/class/tty/console/active)"
echo typed > /dev/hvc0
dmesg -r | grep -E '^<[0-4]>' | sed 's/^/complaint /'
echo "vectors $(grep -c virtio /proc/interrupts)"
"""
)
# An emulated host's TSC is not invariant, which is told at length, and a busy one is late. The last is nd_pmem's word
# on every virtio-pmem, where writes are durable by the device's flush.
EXPECTED = (
    "Unstable clock",
    "If you want to keep",
    "trace_clock",
    "on the kernel command",
    "interrupt took",
    "clocksource:",
    "rcu:",
    "hrtimer:",
    "soft lockup",
    "unable to guarantee persistence of writes",
)


@pytest.fixture(scope="module")
def cloud() -> Path:
    return packages.fetch(packages.kernel_package("debian-cloud"))


@pytest.fixture(scope="module")
def generic() -> Path:
    return packages.fetch(packages.kernel_package("debian"))


def file_system(path: Path, size: int, content: Path) -> Path:
    """Make an ext4 image of a folder."""
    path.touch()
    os.truncate(path, size)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-d", content, path], check=True)
    return path


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def port(guest: ScriptGuest) -> dict[str, Any]:
    return next(one for one in guest.device("virtio-console")["ports"] if one["name"] == "test")


def settles(value: Callable[[], object], limit: float = 120.0) -> None:
    deadline = time.monotonic() + limit
    while not value():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.2)


def receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (got := link.recv(size - len(data))):
        data += got
    return data


@pytest.mark.parametrize(("package", "vcpus"), [("cloud", 2), ("generic", 1)])
def test_every_device_works(request, tmp_path: Path, package: str, vcpus: int) -> None:
    kernel = request.getfixturevalue(package)
    initrd = script_archive(kernel, DEVICES, tmp_path / "initrd")
    disks = []
    for name in ("ro", "private", "shared"):
        path = tmp_path / name
        path.write_bytes(os.urandom(DISK))
        disks.append((path, "blk", name))
    (tmp_path / "content").mkdir()
    pmem = file_system(tmp_path / "pmem", 16 * MIB, tmp_path / "content")
    before = {path.name: digest(path) for path, _, _ in disks}
    guest = ScriptGuest(
        tmp_path, kernel, initrd, vcpus=vcpus, disks=[*disks, (pmem, "pmem", "shared")], ports=["test"], balloon=True
    )
    data = os.urandom(200_000)
    answer = b""
    try:
        guest.start()
        guest.wait_for("ports ready")
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(tmp_path / "guests" / "g.test.sock"))
            link.sendall(data)
            # A client that hangs up takes with it what no program has opened the port for.
            settles(lambda: port(guest)["to_guest"] == len(data))
        guest.wait_for("heard sum")
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(200)
            link.connect(str(tmp_path / "guests" / "g.test.sock"))
            answer = receive(link, len(data) + 1)
        log = guest.join()
        described = {kind: guest.device(f"virtio-{kind}") for kind in ("blk", "rng", "console", "pmem", "balloon")}
    finally:
        guest.close()
    sums = re.findall(r"^sum (\w+) ", log, re.MULTILINE)
    assert sums[:3] == list(before.values()), log
    assert "wrote vda" not in log
    assert "wrote vdb\n" in log
    assert "wrote vdc\n" in log
    assert "discarded" in log
    # Read again from the disk, not from the guest's cache.
    changed = bytearray((tmp_path / "private").read_bytes())
    changed[20:24] = b"wxyz"
    changed[MIB : 2 * MIB] = bytes(MIB)
    assert sums[3:] == [before["ro"], hashlib.md5(changed).hexdigest(), digest(tmp_path / "shared")]
    assert {path.name: digest(path) for path, _, _ in disks[:2]} == {name: before[name] for name in ("ro", "private")}
    assert (tmp_path / "shared").read_bytes()[20:24] == b"wxyz"
    assert "serial disk.0" in log
    assert "read-only 1 0" in log
    assert re.search(r"mounted /dev/pmem0 /mnt ext4 \S*dax=always", log)
    assert "flushed" in log
    assert b"from the guest" in pmem.read_bytes()
    assert described["pmem"]["flushes"] > 0
    assert "random 620f0b67a91f7f74151bc5be745b7110" not in log  # Zeros.
    assert described["rng"]["bytes"] >= 4096
    assert f"heard {len(data)}\nheard sum {hashlib.md5(data).hexdigest()}" in log
    assert answer == data
    assert "typed" in log
    complaints = re.findall("^complaint (.*)", log, re.MULTILINE)
    assert [line for line in complaints if not any(words in line for words in EXPECTED)] == []
    assert int(re.search(r"vectors (\d+)", log)[1]) >= 15
    assert all(one["broken"] is None for one in described.values())


BALLOON = """
awk '/MemTotal|MemFree/ {print "before", $1, $2}' /proc/meminfo
head -c 60000000 /dev/zero > /tmp/dirty; rm /tmp/dirty
echo "balloon ready"
while [ ! -e /tmp/never ]; do
    set -- $(awk '/MemFree/ {print $2}' /proc/meminfo)
    echo "free $1"
    sleep 0.5
done
"""


def resident(guest: ScriptGuest) -> int:
    rows = [row for row in guest.guest.table if row.backing.kind == "anonymous"]
    return sum(found.resident for found in usage("self", [(row.hva, row.size) for row in rows]))


def test_memory_goes_back_and_forth(cloud: Path, tmp_path: Path) -> None:
    """What the guest frees, and what it gives to the balloon, is the host's again."""
    initrd = script_archive(cloud, BALLOON, tmp_path / "initrd")
    guest = ScriptGuest(tmp_path, cloud, initrd, balloon=True)
    try:
        guest.start()
        guest.wait_for("balloon ready")
        balloon = guest.guest.balloon
        assert balloon is not None
        # 60 MB were written and freed; reporting gives back nearly all of it.
        settles(lambda: balloon.describe()["released"] > 50_000_000)
        settles(lambda: resident(guest) < 70 * MIB)
        said = balloon.statistics(timeout=20)
        assert 150 * MIB < said["total"] < 192 * MIB
        assert said["free"] < said["total"]
        balloon.set_target(64 * MIB)
        settles(lambda: balloon.actual == 64 * MIB)
        settles(lambda: balloon.statistics(timeout=20)["free"] < said["free"] - 50 * MIB)
        # Pages of the kernel's own image that it freed are not anonymous: those stay.
        assert balloon.describe()["inflated"] * 4096 == 64 * MIB
        balloon.set_target(0)
        settles(lambda: balloon.actual == 0)
        settles(lambda: balloon.statistics(timeout=20)["free"] > said["free"] - 16 * MIB)
        assert balloon.describe()["broken"] is None
    finally:
        guest.close()


INIT_OF_ROOT = """#!/bin/busybox sh
mount -t proc proc /proc
cached() { awk '/^Cached/ {print $2 * 1024}' /proc/meminfo; }
echo "root $(grep ' / ' /proc/mounts | tail -1)"
before=$(cached)
cat /data/* | md5sum | sed 's/^/content /'
echo "grown $(($(cached) - before))"
echo "scribble" > /data/0 2>/dev/null && sync && echo "wrote $(cat /data/0)"
echo "all read"
while [ -e /data/0 ]; do sleep 1; done
"""
SWITCH = "mount -t ext4 -o dax=always,%s /dev/pmem0 /mnt && exec switch_root /mnt /init\n"


def test_two_guests_on_one_root(cloud: Path, tmp_path: Path) -> None:
    """Root on virtio-pmem with DAX: no guest caches it, the host holds it once, private writes stay private."""
    content = tmp_path / "content"
    for folder in ("bin", "proc", "dev", "sys", "data"):
        (content / folder).mkdir(parents=True)
    (content / "init").write_text(INIT_OF_ROOT)
    (content / "init").chmod(0o755)
    (content / "bin/busybox").write_bytes(packages.busybox().read_bytes())
    (content / "bin/busybox").chmod(0o755)
    for name in ("sh", "mount", "cat", "awk", "grep", "tail", "md5sum", "sed", "echo", "sync", "sleep"):
        (content / "bin" / name).symlink_to("busybox")
    size = 0
    whole = hashlib.md5()
    for number in range(10):
        data = os.urandom(MIB + 12345)
        (content / "data" / str(number)).write_bytes(data)
        whole.update(data)
        size += len(data)
    root = file_system(tmp_path / "root", IMAGE, content)
    before = digest(root)
    guests = []
    try:
        for name, access, mode in (("reader", "ro", "ro"), ("writer", "private", "rw")):
            initrd = script_archive(cloud, SWITCH % mode, tmp_path / f"initrd.{name}")
            guests.append(ScriptGuest(tmp_path, cloud, initrd, name=name, disks=[(root, "pmem", access)]))
            guests[-1].start()
        for guest in guests:
            guest.wait_for("all read")
            assert f"content {whole.hexdigest()}" in guest.log
            assert re.search(r"root /dev/pmem0 / ext4 \S*dax=always", guest.log), guest.log
            grown = int(re.search(r"grown (-?\d+)", guest.log)[1])
            assert grown < size / 20, guest.log
        assert "wrote scribble" in guests[1].log
        assert "wrote" not in guests[0].log
        rows = [row for guest in guests for row in guest.guest.table if row.name == "pmem.0"]
        reader, writer = usage("self", [(row.hva, row.size) for row in rows])
        # Both have all of it mapped; only what the writer wrote is its own.
        assert reader.resident >= size
        assert writer.resident >= size
        assert reader.private < size / 20
        assert writer.private < size / 4
        assert reader.proportional + writer.proportional < size * 1.5
        assert digest(root) == before
    finally:
        for guest in guests:
            guest.close()


BACKPRESSURE = 24_000_000
"""bytes: the queue has 256 buffers, and Linux may put 64 KiB into each before it waits"""


def test_backpressure_from_a_guest(cloud: Path, tmp_path: Path) -> None:
    """A program in the guest writes more than anyone reads: it waits, and nothing is lost when reading goes on."""
    script = (
        PORT
        + f"""
echo "ports ready"
head -c {BACKPRESSURE} /dev/urandom > /tmp/data
md5sum < /tmp/data | sed 's/^/sum /'
cat /tmp/data > $(port test) && echo sent
"""
    )
    initrd = script_archive(cloud, script, tmp_path / "initrd")
    guest = ScriptGuest(tmp_path, cloud, initrd, ports=["test"])
    got: list[bytes] = []

    def read() -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(200)
            link.connect(str(tmp_path / "guests" / "g.test.sock"))
            got.append(receive(link, 1))
            blocked.wait(200)
            got.append(receive(link, BACKPRESSURE))

    blocked = threading.Event()
    reader = threading.Thread(target=read)
    try:
        guest.start()
        guest.wait_for("ports ready")
        reader.start()
        settles(lambda: got)
        assert "sent" not in guest.log
        blocked.set()
        log = guest.join()
        reader.join()
        assert f"sum {hashlib.md5(b''.join(got)).hexdigest()}" in log
        assert "sent" in log
    finally:
        guest.close()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path.name for path in (tmp_path / "guests").iterdir() if path.is_socket()] == []
