"""The ivshmem devices of this guest: what sysfs shows of them, and UIO as their interrupt. No kernel module of ours."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shm.errors import ShmError

VENDOR, DEVICE = 0x1AF4, 0x1110
"""ivshmem's PCI ids (QEMU, docs/specs/ivshmem-spec.txt)"""
DRIVER = "uio_pci_generic"
PAGE = 4096
CPUS = Path("/proc/cpuinfo")
GUESTS_TYPE_COUNTS = {"AuthenticAMD", "HygonGenuine"}
"""makers of processors on which a guest's own memory type decides how memory is cached"""


class Device:
    """One ivshmem device: `folder` is its directory in sysfs, `dev` where device files are."""

    def __init__(self, folder: Path, dev: Path) -> None:
        self.folder = folder
        self.address = folder.name
        self._dev = dev

    @property
    def memory(self) -> Path:
        """The file that maps its shared memory, BAR2."""
        return self.folder / "resource2"

    def cached_memory(self) -> tuple[Path, int] | None:
        """Return the file and offset that map BAR2 write-back, where that takes more than `memory`; else None.

        sysfs maps a BAR uncached. On Intel's processors KVM has a guest's RAM, which a region is, cached all the same;
        on AMD's the guest's own memory type counts, and every look at a ring would go to memory. There /dev/mem, which
        maps what is no RAM as the MTRRs say (write-back in hostd's guests), is the way to a cached mapping.
        """
        file = self._dev / "mem"
        try:
            vendors = {line.split()[-1] for line in CPUS.read_text().splitlines() if line.startswith("vendor_id")}
            start = int((self.folder / "resource").read_text().splitlines()[2].split()[0], 16)
        except (OSError, ValueError, IndexError):
            return None
        return (file, start) if start and not vendors.isdisjoint(GUESTS_TYPE_COUNTS) and file.exists() else None

    @property
    def memory_size(self) -> int:
        """Bytes of BAR2: a power of two, the region's size or more."""
        return self.memory.stat().st_size

    @property
    def registers(self) -> Path:
        """The file that maps its registers, BAR0."""
        return self.folder / "resource0"

    @property
    def registers_offset(self) -> int:
        """Where the registers begin in the page that is mapped."""
        try:
            return int((self.folder / "resource").read_text().split(maxsplit=1)[0], 16) % PAGE
        except (OSError, ValueError, IndexError):
            return 0

    @property
    def config(self) -> Path:
        """The file of its PCI configuration space."""
        return self.folder / "config"

    def enable(self) -> None:
        """Have it answer to its addresses, if no driver has done so. Raises ShmError."""
        file = self.folder / "enable"
        try:
            if file.read_text().strip() == "0":
                file.write_text("1")
        except OSError as error:
            raise ShmError(f"device {self.address}: {file}: cannot be enabled: {error.strerror}; run as root") from None

    def uio(self) -> Path | None:
        """Return the UIO device file of its interrupt, bound now if need be; None where UIO is absent."""
        found = self._uio_name()
        if found is None:
            self._bind()
            found = self._uio_name()
        return None if found is None else self._node(found)

    def _uio_name(self) -> str | None:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.folder / "uio")):
                return name
        return None

    def _bind(self) -> None:
        """Give the device to uio_pci_generic, if the kernel has it and nobody else the device."""
        if (self.folder / "driver").exists():
            return
        driver = self.folder / "subsystem" / "drivers" / DRIVER
        if not driver.exists():
            _load(DRIVER)
        # A driver override names one device; new_id would take all that come, too. Others may be at it, too.
        with contextlib.suppress(OSError):
            (self.folder / "driver_override").write_text(DRIVER)
            (driver / "bind").write_text(self.address)

    def _node(self, name: str) -> Path | None:
        """Return the device file of UIO device `name`; made, where nobody (devtmpfs, udev) has."""
        node = self._dev / name
        if node.exists():
            return node
        with contextlib.suppress(OSError, ValueError):
            major, minor = (self.folder / "uio" / name / "dev").read_text().split(":")
            os.mknod(node, 0o600 | 0o020000, os.makedev(int(major), int(minor)))
            return node
        return None


def _load(module: str) -> None:
    import shutil
    import subprocess

    program = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program and os.geteuid() == 0:
        subprocess.run([program, "-q", module], check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def devices(sysfs: Path, dev: Path) -> list[Device]:
    """Return the ivshmem devices by address."""
    found = []
    for folder in sorted((sysfs / "bus" / "pci" / "devices").glob("*")):
        with contextlib.suppress(OSError, ValueError):
            ids = int((folder / "vendor").read_text(), 16), int((folder / "device").read_text(), 16)
            if ids == (VENDOR, DEVICE):
                found.append(Device(folder, dev))
    return found
