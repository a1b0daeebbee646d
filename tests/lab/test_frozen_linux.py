"""A Linux guest that runs is frozen, and two go on from there: time, processors, devices, disks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from linuxguest import MIB, ScriptGuest, script_archive

from hostd.boot.errors import ImageError
from hostd.devices.machine import DeviceError
from hostd.images import packages

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("HOSTD_LAB" not in os.environ, reason="needs a KVM that runs Linux guests: the lab"),
]

DISK = 8 * MIB
SCRIPT = """
mount -t ext4 /dev/pmem0 /mnt && echo "a file" > /mnt/file && sync
printf frozen | dd of=/dev/vda bs=6 seek=100 conv=fsync 2>/dev/null
head -c 4194304 /dev/urandom > /tmp/big
was=$(md5sum < /tmp/big)
n=0
while true; do
    n=$((n+1))
    sleep 1
    own=$(head -c 16 /dev/urandom | md5sum | cut -c1-32)
    printf $own | dd of=/dev/vda bs=32 seek=500 conv=fsync 2>/dev/null
    echo $own > /mnt/own; sync
    echo 3 > /proc/sys/vm/drop_caches
    disk=$(dd if=/dev/vda bs=6 skip=100 count=1 2>/dev/null)
    [ "$(dd if=/dev/vda bs=32 skip=500 count=1 2>/dev/null)" = $own ] && disk="$disk own"
    [ "$(cat /mnt/file) $(cat /mnt/own)" = "a file $own" ] && disk="$disk pmem"
    [ "$(md5sum < /tmp/big)" = "$was" ] && disk="$disk memory"
    [ -n "$(head -c 16 /dev/hwrng | md5sum)" ] && disk="$disk hwrng"
    for cpu in 1 2; do taskset $cpu sleep 0.1 && disk="$disk cpu$cpu"; done
    bad=$(dmesg | grep -cE "lockup|stall|BUG|blocked for")
    echo "tick $n at $(date +%s) random $own bad $bad: $disk."
done
"""
TICK = re.compile(r"tick (\d+) at (\d+) random (\w+) bad (\d+): ([\w ]+)\.\n")
WELL = "frozen own pmem memory hwrng cpu1 cpu2"


def ticks(guest: ScriptGuest) -> list[tuple[int, int, str, int, str]]:
    return [(int(n), int(at), own, int(bad), all) for n, at, own, bad, all in TICK.findall(guest.log)]


def wait_ticks(guest: ScriptGuest, count: int) -> list[tuple[int, int, str, int, str]]:
    deadline = time.monotonic() + 600
    while len(ticks(guest)) < count:
        assert not guest.results, f"it ended: {guest.results[0]}\n{guest.log}"
        assert time.monotonic() < deadline, guest.log
        time.sleep(0.1)
    return ticks(guest)


def test_two_guests_go_on_from_one(tmp_path: Path) -> None:
    package = packages.fetch(packages.kernel_package("debian-cloud"))
    initrd = script_archive(package, SCRIPT, tmp_path / "initrd")
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.write_bytes(os.urandom(DISK))
    image.write_bytes(bytes(DISK))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    plain = disk.read_bytes(), image.read_bytes()
    disks = [(disk, "blk", "private"), (image, "pmem", "private")]
    options: dict[str, Any] = {"disks": disks, "ports": ["test"], "balloon": True, "vcpus": 2}
    first = ScriptGuest(tmp_path, package, initrd, name="first", **options)
    clones: list[ScriptGuest] = []
    began: list[float] = []
    try:
        first.start()
        before = wait_ticks(first, 2)
        assert {tick[3:] for tick in before} == {(0, WELL)}
        memory = tmp_path / "memory"
        told = first.freeze(memory)
        frozen_at = ticks(first)[-1][0]
        wait_ticks(first, frozen_at + 1)
        time.sleep(5)  # The clones' clocks must make up for that.
        for name in ("one", "two"):
            began.append(time.time())
            clone = ScriptGuest(tmp_path, package, initrd, name=name, template=(told, memory), **options)
            clones.append(clone)
            clone.start()
            wait_ticks(clone, 1)
        for clone, start in zip(clones, began, strict=True):
            found = wait_ticks(clone, 3)
            assert found[0][0] == frozen_at + 1
            assert [tick[0] for tick in found] == list(range(frozen_at + 1, frozen_at + 1 + len(found)))
            assert all(tick[4] == WELL for tick in found), clone.log
            assert {tick[3] for tick in found} == {0}, clone.log
            assert start - 1 <= found[-1][1] <= time.time() + 1
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "guests" / f"{clone.name}.test.sock"))
        assert (disk.read_bytes(), image.read_bytes()) == plain
        assert wait_ticks(first, frozen_at + 2)[-1][4] == WELL, "the one that was frozen goes on, too"

        with pytest.raises(DeviceError, match="doesn't fit this guest"):
            ScriptGuest(tmp_path, package, initrd, name="other", template=(told, memory), **options | {"ports": []})
        with pytest.raises(ImageError, match="with 2 vCPUs, not 1"):
            ScriptGuest(tmp_path, package, initrd, name="fewer", template=(told, memory), **options | {"vcpus": 1})
        lacking = told | {"state": told["state"] | {"vcpus": [{}, {}]}}
        with pytest.raises(ImageError, match="damaged or of another version"):
            ScriptGuest(tmp_path, package, initrd, name="lacks", template=(lacking, memory), **options)
        os.utime(disk)
        with pytest.raises(ImageError, match="disk 0 has changed since the guest of the template started"):
            ScriptGuest(tmp_path, package, initrd, name="changed", template=(told, memory), **options)
    finally:
        for guest in (first, *clones):
            guest.close()
