"""Debian's kernels with the least around them: protocols, files, power-off, reset, panic, 6 GiB, code shared again."""

import dataclasses
import os
import re
import threading
import time

import pytest
from rawguest import CONSOLE, RawGuest

from hostd.boot.linux.kernel import open_kernel
from hostd.boot.linux.patched import share_code
from hostd.images import packages
from hostd.images.cpio import Archive
from hostd.memory.smaps import usage

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif("HOSTD_LAB" not in os.environ, reason="needs a KVM that runs Linux guests: the lab"),
]

MIB, GIB = 1 << 20, 1 << 30
LIMIT = 400.0
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo "hostd: init"
sh /hostd/script
"""
REPORT = """
echo "cpus $(nproc)"
grep -E 'MemTotal' /proc/meminfo
grep -E 'core id|cpu cores|apicid' /proc/cpuinfo
cat /proc/iomem
grep -E 'ttyS0' /proc/interrupts
echo "clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
dmesg | grep -i -E 'acpi|firmware|bios' | sed 's/^/dmesg /'
dmesg -r | grep -E '^<[0-4]>' | sed 's/^/complaint /'
echo reported
"""
# An emulated host's TSC is not invariant, and tracing says so at length; a busy one is late, and the kernel says that.
LAB_ONLY = (
    "Unstable clock detected",
    "If you want to keep using the local clock",
    "trace_clock=",
    "on the kernel command",
    "interrupt took",
    "clocksource:",
    "rcu:",
    "hrtimer:",
    "soft lockup",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def initrd(folder):
    archive = Archive()
    for path in ("bin", "proc", "sys", "dev"):
        archive.directory(path)
    archive.file("init", INIT.encode(), 0o755)
    archive.file("bin/busybox", packages.busybox().read_bytes(), 0o755)
    (folder / "initrd").write_bytes(archive.finish())
    return folder / "initrd"


@pytest.fixture(scope="module")
def kernels(folder):
    """Return a function from "debian" or "debian-cloud", and "bzImage" or "vmlinux", to the kernel."""

    def kernel(name, kind):
        found = open_kernel(packages.vmlinuz(packages.at_hand(name)), folder / "kernels")
        return found if kind == "bzImage" else open_kernel(found.path, folder / "kernels")

    return kernel


@pytest.fixture
def boot(initrd):
    """Return a function that makes a guest which runs a script as its init."""

    def make(kernel, script, **options):
        archive = Archive()
        archive.directory("hostd")
        archive.file("hostd/script", script.encode())
        return RawGuest(kernel, initrd=initrd, extra=archive.finish(), cmdline=f"{CONSOLE} quiet", **options)

    return make


def complaints(console):
    found = re.findall(r"^complaint .*?\] (.*)$", console, re.M)
    return [line for line in found if not any(known in line for known in LAB_ONLY)]


@pytest.mark.parametrize(
    ("name", "kind", "vcpus", "protocol"),
    [
        ("debian-cloud", "bzImage", 1, "PVH"),
        ("debian-cloud", "vmlinux", 2, "64-bit"),
        ("debian", "bzImage", 2, "64-bit"),
        ("debian", "vmlinux", 1, "PVH"),
    ],
)
def test_debians_kernels_reach_init_and_power_off(kernels, boot, name, kind, vcpus, protocol):
    kernel = kernels(name, kind)
    assert (kernel.setup_header == b"") == (kind == "vmlinux")
    if protocol == "64-bit":
        kernel = dataclasses.replace(kernel, pvh=None)
    with boot(kernel, REPORT + "poweroff -f\n", vcpus=vcpus) as guest:
        console = guest.run(LIMIT)
        assert guest.ending == "off", console[-3000:]
    assert "reported" in console
    assert complaints(console) == []
    assert not re.search(r"^dmesg .*(error|warn|firmware|invalid|fail|retains|AE_)", console, re.M | re.I)
    assert "_OSC: OS now controls [" in console
    assert f"cpus {vcpus}\n" in console
    assert re.findall(r"^apicid\s*: (\d+)", console, re.M) == [str(n) for n in range(vcpus)]
    assert re.findall(r"^cpu cores\s*: (\d+)", console, re.M) == [str(vcpus)] * vcpus
    assert "clock kvm-clock" in console
    assert re.search(r"IO-APIC\s+4-edge\s+ttyS0", console)
    assert re.search(r"e0000000-e00fffff : PCI MMCONFIG 0000 \[bus 00-00\]", console)
    assert re.search(r"^c0000000-dfffffff : PCI Bus 0000:00", console, re.M)
    assert re.search(r"^1000000000-\w+ : PCI Bus 0000:00", console, re.M)
    # Where kernels search for firmware there is memory: no exits.
    assert not [where for where in guest.exits if re.fullmatch(r"memory 0x[a-f]\w000", where)]


@pytest.mark.parametrize(
    ("script", "sign"),
    [("reboot -f\n", "Restarting system"), ("echo c > /proc/sysrq-trigger\n", "Kernel panic")],
)
def test_reset_and_panic_end_at_the_reset_register(kernels, boot, script, sign):
    with boot(kernels("debian-cloud", "bzImage"), script, vcpus=2) as guest:
        console = guest.run(LIMIT)
        assert guest.ending == "reset", console[-3000:]
    assert sign in console


def test_six_gib_go_on_above_4_gib_and_cost_what_is_touched(kernels, boot):
    with boot(kernels("debian-cloud", "bzImage"), REPORT + "poweroff -f\n", memory=6 * GIB) as guest:
        console = guest.run(LIMIT)
        rows = list(guest.table)
        resident = sum(row.resident for row in usage("self", [(row.hva, row.size) for row in rows]))
        assert guest.ending == "off", console[-3000:]
    assert complaints(console) == []
    assert "100000000-1bfffffff : System RAM" in console
    assert int(re.search(r"MemTotal:\s+(\d+) kB", console)[1]) > 5.6 * MIB  # in KiB
    assert resident < GIB


def test_two_guests_share_the_code_that_they_patched_alike(kernels, boot, folder):
    kernel, found = kernels("debian-cloud", "bzImage"), []
    for _ in range(2):
        with boot(kernel, "echo up\nsleep 8\nls -lR /sys > /dev/null\npoweroff -f\n", memory=128 * MIB) as guest:
            thread = threading.Thread(target=guest.run, args=(LIMIT,))
            thread.start()
            while "\nup\n" not in guest.console and not guest.ending:
                time.sleep(0.1)
            found.append(share_code(guest.table, kernel, folder / "kernels", guest.paused))
            thread.join()
            # It went on as before.
            assert guest.ending == "off", guest.console[-3000:]
    for sharing in found:
        assert sharing.changed > sharing.pages // 2
        assert sharing.shared > 0.95 * sharing.changed
