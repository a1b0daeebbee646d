"""A Linux guest's view of a region, faked: a sysfs whose resource2 is the file of a region, a FIFO in place of UIO."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path

import shm

ADDRESS = "0000:00:05.0"
STATUS, DOORBELL = 4, 12


class FakeGuest:
    """Folders for `attach`, over the host's region `region`; `lines` are those of /run/hostd/channels."""

    def __init__(
        self, folder: Path, region: shm.Region, lines: list[str], access: str = "rw", handed: bool = True
    ) -> None:
        self.sysfs, self.run, self.dev = folder / "sys", folder / "run", folder / "dev"
        self.device = self.sysfs / "bus" / "pci" / "devices" / ADDRESS
        for path in (self.device, self.run, self.dev):
            path.mkdir(parents=True)
        (self.device / "vendor").write_text("0x1af4\n")
        (self.device / "device").write_text("0x1110\n")
        (self.device / "enable").write_text("0\n")
        (self.device / "resource").write_text("0x00000000c0000000 0x00000000c00000ff 0x0000000000040200\n")
        (self.device / "resource0").write_bytes(bytes(4096))
        (self.device / "config").write_bytes(bytes(5) + b"\x04" + bytes(58))
        (self.device / "resource2").symlink_to(region.backing)
        if handed:
            (self.run / "name").write_text("a\n")
            (self.run / "cluster").write_text("tests\n")
            (self.run / "regions").write_text(f"link {ADDRESS} {access} 1\n")
            (self.run / "channels").write_text("".join(f"{line}\n" for line in lines))
        with (self.device / "resource0").open("r+b") as file:
            self.registers = mmap.mmap(file.fileno(), 4096)
        self._uio: int | None = None

    def with_uio(self) -> None:
        """Give the device an interrupt."""
        (self.device / "uio" / "uio0").mkdir(parents=True)
        os.mkfifo(self.dev / "uio0")
        self._uio = os.open(self.dev / "uio0", os.O_RDWR | os.O_NONBLOCK)

    def interrupt(self) -> None:
        """What the kernel does at an interrupt: mask it, count it, wake who reads."""
        assert self._uio is not None
        with (self.device / "config").open("r+b") as config:
            config.seek(5)
            config.write(b"\x04")
        os.write(self._uio, struct.pack("<I", 1))

    def doorbell(self) -> int:
        """Return what was written to the Doorbell register last, and forget it."""
        value = int.from_bytes(self.registers[DOORBELL : DOORBELL + 4], "little")
        self.registers[DOORBELL : DOORBELL + 4] = b"\xff\xff\xff\xff"
        return value

    def masked(self) -> bool:
        """Tell whether interrupts are disabled in the command register."""
        return bool((self.device / "config").read_bytes()[5] & 4)

    def serve(self, region: shm.Region, bell: int) -> threading.Thread:
        """Be KVM and the device for a while: turn rings of the host's `bell` into interrupts, from a thread."""

        def relay() -> None:
            import select

            poller = select.epoll()
            poller.register(region.bells[bell], select.EPOLLIN | select.EPOLLET)
            while not self._stop.is_set():
                if poller.poll(0.05):
                    self.interrupt()
            poller.close()

        self._stop = threading.Event()
        thread = threading.Thread(target=relay, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
        if self._uio is not None:
            os.close(self._uio)
