"""What a Linux guest boots: its kernel, initrd and disks found, checked, and described for its process."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hostd import images
from hostd.boot.errors import ImageError
from hostd.boot.linux.kernel import Kernel, open_kernel
from hostd.boot.linux.layout import COMMAND_LINE_SIZE
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Disk, Guest, Linux, Root
from hostd.supervisor.boots import Boot
from hostd.supervisor.programs import cache_folder

CMDLINE = "console=ttyS0 panic=-1 quiet pci=noearly"
"""a panic resets at once, which ends the guest; no search of 256 empty buses for old AMD bridges (33,000 exits of a
generic kernel on some CPUs); what a user's own `cmdline` says comes later and counts"""
SCREEN = "console=tty0"
"""the kernel talks to a guest's picture, too; /dev/console stays the last one named"""
SECTOR = 512

MAGICS = (
    (0x438, b"\x53\xef", "ext4"),
    (0x400, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0, b"XFSB", "xfs"),
    (0, b"hsqs", "squashfs"),
)


def linux_boot(guest: Guest, linux: Linux) -> tuple[Boot, Kernel]:
    """Return what `guest` boots, and its kernel. Raises ClusterFileError, ImageError, images' errors and OSError."""
    where = f"guest.{guest.name}"
    cache = cache_folder().parent / "kernels"
    kernel = open_kernel(_find(f"{where}.kernel", linux.kernel, "kernel"), cache)
    initrd = (
        images.ensure_initramfs(kernel) if linux.initrd is None else _find(f"{where}.initrd", linux.initrd, "initramfs")
    )
    disks = [linux.root.disk] if linux.root else []
    disks += linux.disks
    found = [_disk(f"{where}.{'root' if linux.root and not n else f'disk {n}'}", disk) for n, disk in enumerate(disks)]
    for inside, outside in linux.files.items():
        if not outside.exists():
            raise ClusterFileError(f"{where}.files.{inside}: {outside}: no such file")
    cmdline = " ".join([*([SCREEN] if guest.framebuffer else []), CMDLINE, linux.cmdline]).strip()
    if len(cmdline) >= COMMAND_LINE_SIZE:
        raise ClusterFileError(
            f"{where}.cmdline: {len(cmdline)} characters are too long; Linux takes {COMMAND_LINE_SIZE - 1}"
        )
    description = {
        "path": kernel.path,
        "kernel": kernel.plain(),
        "cache": str(cache),
        "initrd_size": initrd.stat().st_size,
        "cmdline": cmdline,
        "vcpus": linux.vcpus,
        "disks": [disk for _, disk in found],
        "ports": list(linux.ports),
        "balloon": linux.balloon,
        "root": _root_line(linux.root, found[0][0]) if linux.root else "",
    }
    files = [(kernel.path, "ro"), (str(initrd), "ro")]
    files += [(str(path), "rw" if disk["access"] == "shared" else "ro") for path, disk in found]
    return Boot(description, tuple(files)), kernel


def _root_line(root: Root, path: Path) -> str:
    """Return where the guest's init finds its root: "DEVICE FSTYPE OPTIONS overlay|plain"."""
    kind = _file_system(path)
    if kind is None:
        known = ", ".join(name for _, _, name in MAGICS)
        raise ImageError(f"{path}: holds no file system that hostd knows ({known}); is it a root file system's image?")
    options = ["ro"] if root.disk.access == "ro" or root.overlay else ["rw"]
    if root.dax and kind in ("ext4", "erofs", "xfs"):
        options.append("dax=always")
    device = "pmem0" if root.disk.device == "pmem" else "vda"
    return f"{device} {kind} {','.join(options)} {'overlay' if root.overlay else 'plain'}"


def _find(where: str, value: str, kind: str) -> Path:
    """Return the file that `value`, a path or an image's name, stands for."""
    path = Path(value)
    if not path.is_absolute():
        try:
            return images.resolve(value, kind).path
        except images.ImageStoreError as error:
            raise ClusterFileError(f"{where}: {error}") from None
    if not path.is_file():
        raise ClusterFileError(f"{where}: {path}: no such file")
    return path


def _disk(where: str, disk: Disk) -> tuple[Path, dict[str, Any]]:
    path = Path(disk.file)
    if not path.is_absolute():
        path = _find(where, disk.file, "rootfs")
    try:
        found = path.stat()
        with path.open("r+b" if disk.access == "shared" else "rb") as file:
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ClusterFileError(f"{where}: {path}: cannot be opened: {error.strerror}") from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise ClusterFileError(f"{where}: {path}: is no file and no block device")
    if size < SECTOR:
        raise ClusterFileError(f"{where}: {path}: has {size} bytes, which is no disk")
    return path, {"path": str(path), "device": disk.device, "access": disk.access, "size": size}


def _file_system(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(4096)
    return next((name for at, magic, name in MAGICS if start[at : at + len(magic)] == magic), None)


def describe(boot: Boot) -> Mapping[str, Any]:
    """Return what `hostd inspect` shows of a Linux guest's boot."""
    plain = boot.description
    return {
        "kernel": plain["kernel"]["version"],
        "cmdline": plain["cmdline"],
        "vcpus": plain["vcpus"],
        "disks": plain["disks"],
    }
