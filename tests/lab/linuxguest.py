"""A stock Linux guest of hostd.vmm that runs a shell script as its init, with disks and ports, in a test's process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgpack

from hostd.boot.linux.kernel import open_kernel
from hostd.images import packages
from hostd.images.cpio import Archive
from hostd.images.folders import cache
from hostd.images.modules import load_order, plain
from hostd.memory.frozen import write_rows
from hostd.vmm.linux import LinuxGuest

MIB = 1 << 20
DEVICES = ("virtio_pci", "virtio_blk", "virtio_rng", "virtio_console", "nd_pmem", "virtio_pmem", "virtio_balloon")
MODULES = (*DEVICES, "crc32c_generic", "ext4")
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
sleep 0.5
"""


def script_archive(package: Path, script: str, path: Path, modules: Iterable[str] = MODULES) -> Path:
    """Write an initramfs to `path`: busybox, the kernel package's `modules`, and `script` as init. Returns `path`."""
    archive = Archive()
    for folder in ("bin", "proc", "sys", "dev", "mnt", "modules", "tmp"):
        archive.directory(folder)
    archive.file("bin/busybox", packages.busybox().read_bytes(), 0o755)
    for number, module in enumerate(load_order(packages.modules_folder(package), modules)):
        archive.file(f"modules/{number:02}-{module.name.partition('.ko')[0]}.ko", plain(module))
    archive.file("init", (INIT + script + "\npoweroff -f\n").encode(), 0o755)
    path.write_bytes(archive.finish())
    return path


class ScriptGuest:
    """The guest `name`; `disks` are (path, device, access). Its folder is `folder`, where ports are sockets."""

    def __init__(
        self,
        folder: Path,
        package: Path,
        initrd: Path,
        *,
        name: str = "g",
        memory: int = 192 * MIB,
        vcpus: int = 1,
        disks: Sequence[tuple[Path, str, str]] = (),
        ports: Sequence[str] = (),
        balloon: bool = False,
        template: tuple[dict[str, Any], Path] | None = None,
    ) -> None:
        self.name, self.folder = name, folder
        for part in ("guests", "logs"):
            (folder / part).mkdir(exist_ok=True)
        self.log_path = folder / "logs" / f"{name}.log"
        log = os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        kernel = open_kernel(packages.vmlinuz(package), cache("kernels"))
        spec: dict[str, Any] = {
            "name": name,
            "dir": str(folder),
            "memory": memory,
            "regions": [],
            "framebuffer": None,
            "bells": 0,
            "doorbells": [],
            "log_limit": 1 << 24,
            "template": None if template is None else template[0],
            "options": {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False},
            "image": {
                "kernel": kernel.plain(),
                "cache": str(cache("kernels")),
                "initrd_size": initrd.stat().st_size,
                "cmdline": "console=ttyS0 quiet panic=-1 pci=noearly",
                "vcpus": vcpus,
                "disks": [
                    {"path": str(path), "device": device, "access": access, "size": path.stat().st_size}
                    for path, device, access in disks
                ],
                "ports": list(ports),
                "balloon": balloon,
            },
        }
        opened = [os.open(kernel.path, os.O_RDONLY), os.memfd_create("archive"), os.open(initrd, os.O_RDONLY)]
        opened += [os.open(path, os.O_RDWR if access == "shared" else os.O_RDONLY) for path, _, access in disks]
        if template is not None:
            opened.append(os.open(template[1], os.O_RDONLY))
        self._opened = [log, *opened]
        self.guest = LinuxGuest(spec, opened, log, lambda *_: None)
        self.results: list[dict[str, Any]] = []
        self._threads = [threading.Thread(target=self._vcpu, args=(index,)) for index in range(vcpus)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, limit: float = 200.0) -> str:
        """Wait for the guest's end, at most `limit` seconds; return its log."""
        deadline = time.monotonic() + limit
        while not self.results and time.monotonic() < deadline:
            time.sleep(0.05)
        self.results.append({"outcome": "time is up"})
        self._stop()
        for thread in self._threads:
            thread.join()
        assert self.results[0]["outcome"] == "exit", f"{self.results[0]}\n{self.log}"
        return self.log

    def wait_for(self, line: str, limit: float = 200.0) -> None:
        """Wait until the guest has written `line`."""
        deadline = time.monotonic() + limit
        while line not in self.log:
            assert not self.results, f"it ended: {self.results[0]}\n{self.log}"
            assert time.monotonic() < deadline, f"no line {line!r}\n{self.log}"
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace").replace("\r", "")

    def device(self, kind: str, name: str = "") -> dict[str, Any]:
        """Return the description of the device of that kind, such as "virtio-blk" (and name, if given)."""
        found = self.guest.counters["devices"]["pci"]
        return next(one for one in found if one["kind"] == kind and name in ("", one["name"]))

    def _vcpu(self, index: int) -> None:
        result = None
        while result is None and not self.results:
            result = self.guest.step(index)
            self.guest.rest(index)
        self.guest.leave(index)
        if result is not None:
            self.results.append(result)
        self._stop()

    def _stop(self) -> None:
        for vcpu in self.guest.vcpus:
            vcpu.stop()

    def freeze(self, path: Path) -> dict[str, Any]:
        """Write the guest's memory to `path`; return the rest of a template as it comes out of a file."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            with self.guest.still():
                state = self.guest.freeze(file)
                told = {"rows": write_rows(self.guest.table, file), "state": state}
        finally:
            os.close(file)
        found: dict[str, Any] = msgpack.unpackb(msgpack.packb(told))
        return found

    def close(self) -> None:
        if any(thread.is_alive() for thread in self._threads):
            self.results.append({"outcome": "closed"})
            self._stop()
            for thread in self._threads:
                thread.join()
        self.guest.close()
        for fd in self._opened:
            os.close(fd)
