"""hostd's own initramfs for a kernel: init, agent and guestctl, a busybox, and the modules that lead to a root.

It is not compressed: hostd maps it into every guest from one file, and the kernel only copies it.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestlib.linux import build
from hostd.images import modules, packages, store
from hostd.images.cpio import Archive
from hostd.images.errors import ImageStoreError
from hostd.images.folders import cache, tell

if TYPE_CHECKING:
    from hostd.boot.linux.kernel import Kernel

MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "virtio_blk",
    "virtio_pmem",
    "nd_pmem",
    "virtio_rng",
    "virtio_balloon",
    "uio_pci_generic",
    "overlay",
    "erofs",
    "crc32c_generic",
    "ext4",
)
"""for hostd's devices and the file systems of its roots; a kernel may have them built in"""
APPLETS = (
    "ash awk base64 basename cat chgrp chmod chown chroot clear cmp cp cut date dd df diff dirname dmesg du echo env "
    "expr false find free getty grep gunzip gzip head hexdump hostname id insmod ip kill killall less ln ls lsmod "
    "md5sum mkdir mkfifo mknod modprobe more mount mv nc od pidof ping poweroff printf ps pwd "
    "readlink reboot rm rmdir rmmod sed seq setsid sh sha256sum sleep sort stat stty sync sysctl tail tar tee test "
    "time timeout top touch tr true tty umount uname uniq uptime vi wc which xargs yes zcat"
).split()
FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin")
FORMAT = 2
"""to be counted up when what is below changes what is in an initramfs"""


def ensure_initramfs(kernel: Kernel) -> Path:
    """Return hostd's initramfs for `kernel`, which is made if it isn't there. Raises ImageStoreError, BuildError."""
    return make(kernel, modules_of(kernel)).path


def modules_of(kernel: Kernel) -> Path | None:
    """Return the folder lib/modules/VERSION that belongs to `kernel`, or None.

    The image of a Debian kernel knows it; a kernel's file has it as /boot and /lib have it, in an unpacked package too.
    """
    source = Path(kernel.source)
    for image in store.images("kernel"):
        if image.path == source and image.about.get("modules"):
            return Path(image.about["modules"])
    beside = source.parent.parent / "lib/modules" / (kernel.version or "none")
    return beside if (beside / "modules.builtin").is_file() else None


def make(
    kernel: Kernel, modules_folder: Path | None, wanted: Sequence[str] = MODULES, name: str | None = None
) -> store.Image:
    """Return an initramfs with the modules `wanted`, under `name`, or one that tells the kernel's version.

    Without a folder of modules it has none. Raises ImageStoreError and BuildError.
    """
    programs = build.binaries(cache("programs"))
    busybox = packages.busybox()
    parts = (FORMAT, str(modules_folder), list(wanted), programs.init.name, str(busybox), busybox.stat().st_size)
    key = hashlib.sha256(repr((*parts, APPLETS)).encode()).hexdigest()
    if modules_folder is not None and not modules_folder.is_dir():
        raise ImageStoreError(
            f"{modules_folder}: the kernel's modules are no longer there; "
            f"remove the kernel's image and make it again (`hostd image ls`)"
        )
    if name is None:
        release = kernel.version or Path(kernel.source).name
        name = release if modules_folder is not None else f"{release}.plain"

    def write(path: Path) -> dict[str, Any]:
        tell(f"making an initramfs for {kernel.version or kernel.source}")
        files = modules.load_order(modules_folder, wanted) if modules_folder is not None else []
        path.write_bytes(_archive(programs, busybox, files, modules_folder))
        return {"kernel": kernel.version, "modules": [_module(file) for file in files]}

    return store.add(name, "initramfs", key, write)


def _archive(programs: build.Binaries, busybox: Path, files: Sequence[Path], modules_folder: Path | None) -> bytes:
    archive = Archive()
    for folder in FOLDERS:
        archive.directory(folder, 0o1777 if folder == "tmp" else 0o755)
    archive.node("dev/console", stat.S_IFCHR | 0o600, 5, 1)
    archive.file("init", programs.init.read_bytes(), 0o755)
    archive.symlink("bin/guestctl", "../init")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    # A name that stands in the hosts file is not to wait for a name server that isn't there.
    archive.file("etc/nsswitch.conf", b"hosts: files dns\n")
    order = []
    if modules_folder is not None:
        archive.directory(f"lib/modules/{modules_folder.name}")
        for file in files:
            inside = f"lib/modules/{modules_folder.name}/{_module(file)}.ko"
            archive.file(inside, modules.plain(file))
            order.append(f"/{inside}\n")
    archive.file("lib/modules/order", "".join(order).encode())
    return archive.finish()


def _module(path: Path) -> str:
    return path.name.partition(".ko")[0]
