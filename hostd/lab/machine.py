"""The lab's machine: QEMU emulating an AMD CPU with AMD-V in software, the host's file system its disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hostd.images import packages
from hostd.lab.errors import LabError
from hostd.lab.initramfs import initramfs

QEMU = "qemu-system-x86_64"
KERNEL = "debian"
"""Debian's generic kernel: the cloud one has no 9p"""
PR_SET_PDEATHSIG = 1


class LabMachine:
    """A machine that has been started. `agent` is the socket on which its agent answers, `console` its kernel's log."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.agent = folder / "agent.sock"
        self.console = folder / "console.log"

    def last_words(self) -> str:
        """Return the last lines of the kernel's log, for a message."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return " / ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())


@contextlib.contextmanager
def machine(memory: int, cpus: int, out: Path | None) -> Iterator[LabMachine]:
    """Start a machine of `memory` bytes; leaving the context ends it. Raises LabError, ImageStoreError, BuildError."""
    if shutil.which(QEMU) is None:
        raise LabError(f"the lab needs {QEMU}; install it: apt-get install --no-install-recommends qemu-system-x86")
    kernel = packages.fetch(packages.kernel_package(KERNEL))
    modules = packages.modules_folder(kernel)
    archive = initramfs(modules)
    with tempfile.TemporaryDirectory(prefix="hostd-lab-") as name:
        folder = Path(name)
        words = ["console=ttyS0", "quiet", "panic=-1", f"lab.modules={_quoted(modules)}"]
        command = [QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-la57", "-smp", str(cpus)]
        command += ["-m", str(memory >> 20), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(packages.vmlinuz(kernel)), "-initrd", str(archive)]
        command += ["-chardev", f"file,id=console,path={folder}/console.log", "-serial", "chardev:console"]
        command += [
            "-device",
            "virtio-serial-pci",
            "-chardev",
            f"socket,id=agent,path={folder}/agent.sock,server=on,wait=off",
        ]
        command += ["-device", "virtserialport,chardev=agent,name=hostd.agent", "-device", "virtio-rng-pci"]
        command += ["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"]
        if out is not None:
            words.append(f"lab.out={_quoted(out)}")
            path = str(out).replace(",", ",,")
            command += ["-virtfs", f"local,path={path},mount_tag=out,security_model=none,multidevs=remap"]
        command += ["-append", " ".join(words)]
        with open(folder / "qemu.log", "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (no thread has been started)
                process_group=0,
            )
        try:
            yield LabMachine(process, folder)
        finally:
            process.kill()
            process.wait()


def _quoted(path: Path) -> str:
    """Return a path as the kernel's command line can carry it, for printf: no blanks, no quotes."""
    plain = "/._-+,:@%="
    return "".join(chr(b) if chr(b).isalnum() or chr(b) in plain[:5] else f"\\0{b:o}" for b in os.fsencode(path))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
