"""Real vhost-user front ends on the switch: DPDK's virtio-user, and QEMU with a Linux guest."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vhost_front import MRG_RXBUF, PLAIN, Nic, wait_until

from hostd.images import modules, packages
from hostd.images.cpio import Archive

needs_dpdk = pytest.mark.skipif(
    shutil.which("dpdk-testpmd") is None, reason="dpdk-testpmd is not installed (apt: dpdk-dev and its drivers)"
)
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed (apt: qemu-system-x86)"
)

MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
FRAMES = 20_000


@pytest.fixture
def testpmd(lan) -> Iterator[subprocess.Popen[str]]:
    """Two virtio-user ports, which send back what comes, with the addresses swapped."""
    command = [
        "dpdk-testpmd",
        f"--file-prefix=lan{os.getpid()}",
        "--no-huge",
        "--no-pci",
        "--no-telemetry",
        "-m",
        "128",
    ]
    # One processor for both threads of the program: the other one is the switch's.
    command += ["--lcores=0@0,1@0"]
    for number, mac in enumerate(MACS):
        command.append(f"--vdev=net_virtio_user{number},path={lan.port('ab'[number])},queue_size=256,mac={mac}")
    command += ["--", "-i", "--no-mlockall", "--total-num-mbufs=2048", "--forward-mode=macswap", "--port-topology=loop"]
    command += [f"--eth-peer={number},{mac}" for number, mac in enumerate(reversed(MACS))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@needs_dpdk
def test_dpdk_loses_no_frame(lan, testpmd):
    """As many as there is always room for go to and fro; each is one frame in and one out, whatever the pace."""
    tell(testpmd, "start tx_first 4")

    def counters():
        return [lan.info(name).counters for name in "ab"]

    wait_until(lambda: sum(port.frames_in for port in counters()) > FRAMES, 60)
    tell(testpmd, "stop")

    def still() -> bool:
        before = counters()
        time.sleep(0.2)
        return before == counters()

    wait_until(still, 30)
    a, b = counters()
    tell(testpmd, "quit")
    output, _ = testpmd.communicate(timeout=30)
    assert not any([*a.drops.values(), *b.drops.values()])
    assert (a.frames_in, b.frames_in) == (b.frames_out, a.frames_out)
    totals = output[output.rindex("Accumulated forward statistics") :]
    sent, lost = re.findall(r"TX-total: (\d+)", totals), re.findall(r"[RT]X-dropped: (\d+)", totals)
    assert sent == [str(a.frames_in + b.frames_in)]
    assert lost == ["0", "0"]


# --- QEMU ---

HOST, GUEST = bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2])
GUEST_MAC = "02:00:00:00:00:77"
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /order); do /bin/busybox insmod $module || echo "no $module"; done
/bin/busybox ip link set eth0 up
/bin/busybox ip address add 10.9.0.2/24 dev eth0
while true; do /bin/busybox ping -c 1 -W 1 10.9.0.1; done
"""


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", total ^ 0xFFFF)


def answer(nic: Nic, frame: bytes) -> bytes | None:
    """The answer to an ARP request for the host, or to an echo request."""
    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == HOST:
        return frame[6:12] + nic.mac + frame[12:20] + b"\0\2" + nic.mac + HOST + frame[22:32]
    if frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 8:
        [size] = struct.unpack_from(">H", frame, 16)
        echo = b"\0\0\0\0" + frame[38 : 14 + size]
        echo = echo[:2] + checksum(echo) + echo[4:]
        return frame[6:12] + nic.mac + frame[12:26] + HOST + GUEST + echo
    return None


class Host:
    """A card that answers pings, and counts them."""

    def __init__(self, nic: Nic) -> None:
        self.nic, self.pings = nic, 0

    def serve(self, pings: int) -> bool:
        """Answer what has come; whether there were that many pings in all."""
        for _, frame in self.nic.receive():
            reply = answer(self.nic, frame)
            if reply is not None:
                self.nic.send(reply)
                self.pings += reply[12:14] == b"\x08\0"
        return self.pings >= pings


def make_initramfs(path: Path, folder: Path) -> None:
    archive = Archive()
    for name in ("bin", "dev", "lib"):
        archive.directory(name)
    archive.node("dev/console", 0o020600, 5, 1)
    archive.file("init", INIT.encode(), 0o755)
    archive.file("bin/busybox", packages.busybox().read_bytes(), 0o755)
    files = modules.load_order(packages.modules_folder(folder), ["virtio_pci", "virtio_net"])
    for file in files:
        archive.file(f"lib/{file.name.partition('.ko')[0]}.ko", modules.plain(file))
    archive.file("order", " ".join(f"/lib/{file.name.partition('.ko')[0]}.ko" for file in files).encode())
    path.write_bytes(archive.finish())


@pytest.fixture
def qemu(lan, tmp_path) -> Iterator[Path]:
    """A Linux guest under emulation, whose card is the port `guest`. What its console shows."""
    folder = packages.at_hand("debian-cloud")
    make_initramfs(tmp_path / "initramfs", folder)
    command = ["qemu-system-x86_64", "-M", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-m", "192M"]
    command += ["-object", "memory-backend-memfd,id=ram,size=192M,share=on", "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-no-reboot", "-serial", f"file:{tmp_path / 'console'}"]
    command += ["-kernel", str(packages.vmlinuz(folder)), "-initrd", str(tmp_path / "initramfs")]
    command += ["-append", "console=ttyS0 quiet panic=-1"]
    command += ["-chardev", f"socket,id=port,path={lan.port('guest')},reconnect=1"]
    command += ["-netdev", "vhost-user,id=net,chardev=port"]
    # QEMU 7.2 without KVM dies of vhost devices that have MSI-X.
    command += ["-device", f"virtio-net-pci,netdev=net,mac={GUEST_MAC},vectors=0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        yield tmp_path / "console"
        process.kill()


@needs_qemu
@pytest.mark.timeout(180)
def test_a_qemu_guest_pings(lan, qemu):
    """It negotiates, sends and receives; and goes on after its port went away and came again."""
    host = Host(lan.nic("host", features=PLAIN | MRG_RXBUF).start())
    wait_until(lambda: host.serve(3), 90)
    lan.switch.remove("guest")
    lan.port("guest")
    before = host.pings
    wait_until(lambda: host.serve(before + 3), 60)
    assert not lan.info("guest").quarantined
    wait_until(lambda: "1 packets received" in qemu.read_text(), 10)
