"""A stock Linux guest and a region: what lspci says, resource2, doorbells both ways through uio_pci_generic."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from hostd.boot.linux.kernel import open_kernel
from hostd.images import packages
from hostd.images.cpio import Archive
from hostd.images.folders import cache
from hostd.images.modules import plain
from hostd.vmm.linux import LinuxGuest

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif("HOSTD_LAB" not in os.environ, reason="needs a KVM that runs Linux guests: the lab"),
]

PROBE = Path(__file__).with_name("ivshmem_probe.c")
SIZE, LIMIT, RINGS = 1 << 20, 200.0, 6
PCI_IDS = Path("/usr/share/misc/pci.ids")


@pytest.fixture(scope="module")
def kernel_package() -> Path:
    return packages.fetch(packages.kernel_package("debian-cloud"))


@pytest.fixture(scope="module")
def initrd(kernel_package, tmp_path_factory) -> Path:
    """Return an archive of the probe, the two modules it loads, and Debian's lspci with its libraries."""
    folder = tmp_path_factory.mktemp("ivshmem")
    subprocess.run(["gcc", "-O2", "-static", "-o", folder / "probe", PROBE], check=True)
    archive = Archive()

    def add(path: str, data: bytes, mode: int = 0o644) -> None:
        for parent in reversed(Path(path).parents[:-1]):
            archive.directory(str(parent))
        archive.file(path, data, mode)

    add("init", (folder / "probe").read_bytes(), 0o755)
    drivers = packages.modules_folder(kernel_package) / "kernel/drivers/uio"
    for name in ("uio", "uio_pci_generic"):
        [module] = drivers.glob(f"{name}.ko*")
        add(f"{name}.ko", plain(module))
    lspci = shutil.which("lspci")
    assert lspci, "lspci is missing: apt install pciutils"
    listed = subprocess.run(["ldd", lspci], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"/\S+", listed):
        add(library.lstrip("/"), Path(library).read_bytes(), 0o755)
    add("bin/lspci", Path(lspci).read_bytes(), 0o755)
    if PCI_IDS.exists():
        add(str(PCI_IDS).lstrip("/"), PCI_IDS.read_bytes())
    path = folder / "initrd"
    path.write_bytes(archive.finish())
    return path


class Host:
    """The host's side: the region, its bells, and the guest that runs beside."""

    def __init__(self, kernel_package: Path, initrd: Path, folder: Path, access: str, vcpus: int) -> None:
        self.writable = access == "rw"
        self.region = os.memfd_create("region")
        os.ftruncate(self.region, SIZE)
        os.pwrite(self.region, b"written by the host\0", 0)
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
        for name in ("guests", "logs"):
            (folder / name).mkdir()
        self.log_path = folder / "logs" / "g.log"
        self.log = os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        kernel = open_kernel(packages.vmlinuz(kernel_package), cache("kernels"))
        spec = {
            "name": "g",
            "dir": str(folder),
            "memory": 192 << 20,
            "regions": [{"name": "link", "size": SIZE, "access": access}],
            "framebuffer": None,
            "bells": len(self.bells),
            "doorbells": [{"peer": 1, "peers": [[0, 1], [2, 3]], "waits": [1]}],
            "log_limit": 1 << 24,
            "options": {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False},
            "image": {
                "kernel": kernel.plain(),
                "cache": str(cache("kernels")),
                "initrd_size": initrd.stat().st_size,
                "cmdline": f"console=ttyS0 quiet panic=-1 pci=noearly -- 0000:00:01.0 1 {RINGS}",
                "vcpus": vcpus,
                "disks": [],
                "ports": [],
                "balloon": False,
            },
        }
        flags = os.O_RDWR if access == "rw" else os.O_RDONLY
        opened = [
            os.open(kernel.path, os.O_RDONLY),
            os.open(f"/proc/self/fd/{self.region}", flags),
            os.memfd_create("archive"),
            os.open(initrd, os.O_RDONLY),
        ]
        self.guest = LinuxGuest(spec, [*opened[:2], *self.bells, *opened[2:]], self.log, lambda *_: None)
        self.results: list[dict] = []
        self.opened = opened

    def run(self) -> int:
        """Run the guest to its end; answer each ring of the region's first bell. Return how often that was."""
        vcpus = range(len(self.guest.vcpus))
        threads = [threading.Thread(target=self._vcpu, args=(index,)) for index in vcpus]
        for thread in threads:
            thread.start()
        end, heard = time.monotonic() + LIMIT, 0
        while not self.results:
            if time.monotonic() > end:
                self.results.append({"outcome": "time is up", "code": -1})
            if select.select([self.bells[0]], [], [], 0.1)[0]:
                os.eventfd_read(self.bells[0])
                # Its own two vectors and the region's second bell, in turn.
                os.eventfd_write(self.bells[2 + heard % 3] if heard % 3 < 2 else self.bells[1], 1)
                heard += 1
        self._stop()
        for thread in threads:
            thread.join()
        return heard

    def _vcpu(self, index: int) -> None:
        result = None
        while result is None and not self.results:
            result = self.guest.step(index)
        if result is not None:
            self.results.append(result)
        self._stop()

    def _stop(self) -> None:
        for vcpu in self.guest.vcpus:
            vcpu.stop()

    def close(self) -> None:
        self.guest.close()
        for fd in (*self.opened, *self.bells, self.region, self.log):
            os.close(fd)


@pytest.fixture(params=[("rw", 2), ("ro", 1)], ids=["rw, 2 vCPUs", "ro, 1 vCPU"])
def host(request, kernel_package, initrd, tmp_path):
    host = Host(kernel_package, initrd, tmp_path, *request.param)
    yield host
    host.close()


def test_lspci_resource2_and_doorbells_both_ways(host):
    heard = host.run()
    text = host.log_path.read_text(errors="replace").replace("\r", "")
    assert host.results[0]["outcome"] == "exit", text
    assert "probe: done" in text, text
    # QEMU's specification: vendor and device, revision 1, three BARs.
    assert re.search(r"00:01\.0 RAM memory \[0500\]:.*\[1af4:1110\] \(rev 01\)", text), text
    assert re.search(r"Region 0: Memory at \w+ \(32-bit, non-prefetchable\) \[size=256\]", text)
    assert re.search(r"Region 1: Memory at \w+ \(32-bit, non-prefetchable\) \[size=4K\]", text)
    assert re.search(r"Region 2: Memory at \w+ \(64-bit, prefetchable\) \[size=1M\]", text)
    assert "MSI-X: Enable- Count=2 Masked-" in text
    assert "pin A routed to IRQ" in text
    # resource2, both ways.
    assert "probe: region written by the host" in text
    assert os.pread(host.region, 21, 4096) == (b"written by the guest\0" if host.writable else bytes(21))
    # Doorbells: it rang the host, was rung by it, and rang itself.
    assert heard == RINGS
    assert re.findall(r"probe: interrupt (\d+) status 1", text) == [str(n) for n in range(RINGS + 1)]
    assert "probe: position 1" in text
    # No ring came as an exit but the one to nobody.
    [device] = [one for one in host.guest.counters["devices"]["pci"] if one["kind"] == "ivshmem"]
    assert (device["doorbell_exits"], device["doorbells_to_nobody"]) == (1, 1)
