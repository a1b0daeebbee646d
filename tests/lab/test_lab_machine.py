"""What the lab promises to what runs in it (docs/lab.md)."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from hostd.doctor.probe import KvmKind, kvm_kind
from hostd.kvm import System


def mounts() -> dict[str, str]:
    """Return the file systems' types by mount point; the last mount of a place is what is seen."""
    return {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}


def test_kvm_is_a_real_one() -> None:
    assert kvm_kind() is KvmKind.FULL
    assert Path("/sys/module/kvm_amd/parameters/npt").read_text().strip() in ("1", "Y")
    with System.open() as system:
        assert all(
            system.capability(name) for name in ("IRQCHIP", "IRQFD", "IRQFD_RESAMPLE", "SIGNAL_MSI", "IOEVENTFD")
        )


def test_a_machine_of_each_kind_is_kept_so_that_no_static_key_changes() -> None:
    [process] = [path for path in Path("/proc").glob("[0-9]*") if (path / "comm").read_text().strip() == "steady"]
    held = [os.readlink(link) for link in (process / "fd").iterdir()]
    assert held.count("anon_inode:kvm-vm") == 2
    assert sum(link.startswith("anon_inode:kvm-vcpu") for link in held) == 2


@pytest.mark.parametrize(
    "module",
    [
        "uio_pci_generic",
        "tun",
        "overlay",
        "erofs",
        "loop",
        "nf_tables",
        "bridge",
        "veth",
        "virtio_net",
        "nd_pmem",
    ],
)
def test_modules_load(module: str) -> None:
    done = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    assert module in loaded


def test_the_kernel_finds_modprobe() -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        pass
    assert Path("/sys/module/vsock").exists()


def test_what_is_the_machines_own() -> None:
    found = mounts()
    assert found["/"] == "overlay"
    assert found["/dev/shm"] == found["/run"] == "tmpfs"
    assert found["/dev/pts"] == "devpts"
    assert found["/sys/fs/cgroup"] == "cgroup2"
    assert os.geteuid() == 0


def test_huge_pages_are_given_when_asked_for() -> None:
    assert "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    reserved = Path("/proc/sys/vm/nr_hugepages")
    before = reserved.read_text()
    reserved.write_text("16")
    try:
        assert int(reserved.read_text()) == 16
    finally:
        reserved.write_text(before)


def test_there_is_no_network_but_loopback() -> None:
    assert Path("/sys/class/net/lo/flags").read_text().strip() == "0x9"
    physical = [path.name for path in Path("/sys/class/net").iterdir() if (path / "device").exists()]
    assert physical == []
