"""The lab's initramfs: busybox, the modules that lead to the host's file system, and hostd's agent as process 1."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from guestlib.linux import build
from hostd.images import modules, packages
from hostd.images.cpio import Archive
from hostd.images.folders import appearing, cache, locked

EARLY = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
"""what it takes to get to the root"""
LATE = ("kvm_amd", "uio_pci_generic", "tun", "loop", "vhost_net")
"""what nobody asks the kernel for before using it; it loads all else when it is asked for it"""
SCRIPT = Path(__file__).with_name("init.sh")
STEADY = Path(__file__).with_name("steady.c")


def initramfs(modules_folder: Path) -> Path:
    """Return the initramfs for the kernel of `modules_folder`, made once. Raises ImageStoreError, BuildError."""
    folder = cache("lab")
    programs = build.binaries(cache("programs"))
    busybox = packages.busybox()
    with locked(folder):
        modules.index(modules_folder, busybox)
    early = modules.load_order(modules_folder, EARLY)
    late = [path for path in modules.load_order(modules_folder, LATE) if path not in early]
    # The programs' name is the digest of their sources, the modules' folder has their version in it.
    digest = hashlib.sha256(f"{programs.init.name} {modules_folder} {EARLY} {LATE}".encode())
    for path in (SCRIPT, STEADY, Path(__file__), busybox):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    made = folder / f"{digest.hexdigest()[:32]}.cpio"
    with locked(folder):
        if not made.exists():
            steady = build.compile_static([STEADY], made.with_suffix(".steady"))
            with appearing(made) as path:
                path.write_bytes(_archive({"agent": programs.agent, "steady": steady}, busybox, early, late))
            steady.unlink()
    return made


def _archive(programs: Mapping[str, Path], busybox: Path, early: list[Path], late: list[Path]) -> bytes:
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "run", "modules", "modules/early", "modules/late", "host", "top", "root"):
        archive.directory(name)
    archive.node("dev/console", stat.S_IFCHR | 0o600, 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    for name, program in programs.items():
        archive.file(name, program.read_bytes(), 0o755)
    archive.file("init", SCRIPT.read_bytes(), 0o755)
    for folder, files in (("early", early), ("late", late)):
        for number, path in enumerate(files):
            archive.file(f"modules/{folder}/{number:02d}-{path.name.partition('.ko')[0]}.ko", modules.plain(path))
    return archive.finish()
