"""The lab's machine: QEMU emulating an AMD CPU with AMD-V in software, the host's file system its disk.

It has no file of its own on the host: its log is in memory, and its agent is at the end of a pair of sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hostd.images import packages
from hostd.images.folders import tell
from hostd.lab.errors import LabError
from hostd.lab.initramfs import initramfs

QEMU = "qemu-system-x86_64"
KERNEL = "debian"
"""Debian's generic kernel: the cloud one has no 9p"""
CPU = "max,-la57,-erms,-fsrm"
"""emulated, `rep movsb` goes byte by byte: a CPU that doesn't praise it has its kernels copy eight bytes at a time, and
its programs more. And the kernel's tables of pages have four levels, as they have nearly everywhere"""
FASTER = "mitigations=off init_on_alloc=0 audit=0 nmi_watchdog=0 tsc=reliable random.trust_cpu=on"
"""what nobody needs where every instruction is emulated, and all is thrown away"""
SMALL_PAGES = "transparent_hugepage=madvise"
"""Debian's kernel has "always", with which a guest that touches a page takes 2 MiB: the doctor warns of that"""
PLAIN = string.ascii_letters + string.digits + "/._-+"
LEAST_MEMORY = 512 << 20
LAST_WORDS = 16 << 10
"""so many bytes of the log's end are searched for the reason: a panic with its trace is shorter"""
PR_SET_PDEATHSIG = 1


class LabMachine:
    """A machine that has been started. `agent` is the socket at which its agent answers."""

    def __init__(self, process: subprocess.Popen[bytes], agent: socket.socket, log: int) -> None:
        self.process = process
        self.agent = agent
        self._log = log

    def last_words(self) -> str:
        """Return why the machine ended, as far as its init or kernel said; else the last lines of all."""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # A panic ends in registers, and a power-off in messages of drivers: neither is the reason.
        reasons = [line for line in lines if line.startswith("lab: ") or "Kernel panic" in line]
        return " / ".join((reasons or lines)[-3:])


def check(memory: int, cpus: int) -> None:
    """Look for what the lab needs of this host. Raises LabError, which says what to install."""
    if shutil.which(QEMU) is None:
        raise LabError(f"the lab needs {QEMU}: apt-get install --no-install-recommends qemu-system-x86 busybox-static")
    if memory < LEAST_MEMORY:
        raise LabError(f"a lab of {memory >> 20} MiB is too small: it takes {LEAST_MEMORY >> 20} MiB to boot")
    if cpus < 1:
        raise LabError(f"a lab with {cpus} CPUs runs nothing: give it one at least")


@contextlib.contextmanager
def machine(memory: int, cpus: int, out: Path | None, *, verbose: bool = False) -> Iterator[LabMachine]:
    """Start a machine of `memory` bytes; leaving the context ends it. Raises LabError, ImageStoreError, BuildError.

    When `verbose`, what its kernel says goes to standard error.
    """
    check(memory, cpus)
    kernel = packages.at_hand(KERNEL)
    modules = packages.modules_folder(kernel)
    archive = initramfs(modules)
    words = ["console=ttyS0", "panic=-1", FASTER, SMALL_PAGES, f"lab.modules={_quoted(modules)}"]
    words += [] if verbose else ["quiet"]
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.memfd_create("hostd-lab-log"), "r+b", buffering=0) as log:
        command = [QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", str(cpus)]
        command += ["-m", str(memory >> 20), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(packages.vmlinuz(kernel)), "-initrd", str(archive)]
        command += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={theirs.fileno()}"]
        command += ["-device", "virtserialport,chardev=agent,name=hostd.agent", "-device", "virtio-rng-pci"]
        command += ["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"]
        if out is not None:
            words.append(f"lab.out={_quoted(out)}")
            path = str(out).replace(",", ",,")
            command += ["-virtfs", f"local,path={path},mount_tag=out,security_model=none,multidevs=remap"]
        command += ["-append", " ".join(words)]
        if verbose:
            tell(f"hostd lab: {' '.join(command)}")
        parent = os.getpid()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2 if verbose else log,
                stderr=2 if verbose else log,
                pass_fds=[theirs.fileno()],
                preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 (no thread has been started)
                # A Ctrl-C at the terminal is for the command in it.
                process_group=0,
            )
        except OSError as error:
            raise LabError(f"{QEMU} does not start: {error.strerror}") from None
        theirs.close()
        try:
            yield LabMachine(process, ours, log.fileno())
        finally:
            process.kill()
            process.wait()


def _quoted(path: Path) -> str:
    """Return a path as the kernel's command line can carry it, for printf: no blanks, no quotes."""
    return "".join(char if (char := chr(byte)) in PLAIN else f"\\{byte:03o}" for byte in os.fsencode(path))


def _die_with(parent: int) -> None:
    """Have this process end with the one that starts it, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
