"""virtio-blk: a raw file or a block device as a disk (virtio 1.2, 5.2)."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any, Literal

from hostd.devices._devices import ffi, lib
from hostd.devices.machine import DeviceError
from hostd.devices.virtio.device import VirtioDevice, descriptor
from hostd.memory.frozen import copy_data

if TYPE_CHECKING:
    from hostd.devices.machine import Machine

Access = Literal["ro", "shared", "private"]

SECTOR = 512
WORD = 8


class Blk(VirtioDevice):
    """A disk. `size` in bytes."""

    kind = "blk"
    counted = ("reads", "writes", "flushes", "discards", "refused", "failed", "read_bytes", "written_bytes")

    def __init__(self, machine: Machine, device: Any, name: str, access: Access, size: int, own_thread: bool) -> None:
        super().__init__(machine, device, name, own_thread=own_thread)
        self.access = access
        self.size = size

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "access": self.access, "size": self.size}

    # --- templates: a private disk's own sectors; the machine is held, or doesn't run yet -----------------------

    def _written(self) -> memoryview:
        """One bit for each sector, set once it is the overlay's."""
        return memoryview(ffi.buffer(self.c.written, (self.c.sectors // 64 + 1) * WORD))

    def save_overlay(self, file: int) -> dict[str, Any]:
        """Append what the guest wrote to a private disk to `file`; return where, for `restore_overlay`.

        Raises OSError.
        """
        offset = os.fstat(file).st_size
        os.ftruncate(file, offset + self.size)
        copy_data(self.c.overlay_fd, 0, file, offset, self.size)
        return {"offset": offset, "size": self.size, "written": zlib.compress(self._written(), 1)}

    def restore_overlay(self, file: int, saved: dict[str, Any]) -> None:
        """Take back what `save_overlay` wrote to `file`. Raises DeviceError, OSError."""
        written, unpacker = self._written(), zlib.decompressobj()
        try:
            bits = unpacker.decompress(saved["written"], len(written) + 1)
        except zlib.error:
            bits = b""
        if len(bits) != len(written) or not unpacker.eof or saved["size"] != self.size or self.access != "private":
            raise DeviceError(22, f"blk {self.name}: the template's copy of what was written to it isn't of this disk")
        if saved["offset"] + self.size > os.fstat(file).st_size:
            raise DeviceError(
                22, f"blk {self.name}: the template lacks what was written to it; make the template again"
            )
        copy_data(file, saved["offset"], self.c.overlay_fd, 0, self.size)
        written[:] = bits


def add_blk(
    machine: Machine,
    file: int | str | os.PathLike[str],
    access: Access = "ro",
    *,
    name: str = "disk",
    serial: str = "",
    overlay: str | os.PathLike[str] | None = None,
    block_size: int = SECTOR,
    own_thread: bool = True,
) -> Blk:
    """Add a disk of the bytes in `file`, a path or a descriptor (which stays the caller's).

    `access`: "ro"; "shared": writes go to the file; "private": writes go to an unnamed file in the folder
    `overlay`, or in memory if that is None, and are gone with the guest. `serial` has at most 20 bytes; without
    it, `name` is it. `block_size` (bytes, a power of two from 512 to 4096) is what the guest takes for the
    disk's. With `own_thread` slow requests delay no other device. Raises DeviceError.
    """
    where = f"blk {name}"
    if access not in ("ro", "shared", "private"):
        raise DeviceError(22, f'{where}: its access is {access!r}; it can be "ro", "shared" or "private"')
    text = (serial or name).encode()
    if serial and len(text) > lib.BLK_SERIAL:
        raise DeviceError(22, f"{where}: its serial {serial!r} has more than {lib.BLK_SERIAL} bytes")
    if block_size not in (512, 1024, 2048, 4096):
        raise DeviceError(22, f"{where}: its block size {block_size} is none of 512, 1024, 2048, 4096")
    fds = [descriptor("blk", name, file, access == "shared")]
    try:
        size = os.lseek(fds[0], 0, os.SEEK_END) // block_size * block_size
        if not size:
            raise DeviceError(22, f"{where}: {file} holds no whole block of {block_size} bytes")
        if access == "private":
            fds.append(_overlay(where, overlay))
            os.truncate(fds[1], size)  # Sparse: zeros of it need not be written to be read.
        device = lib.virtio_blk_new(
            machine.memory,
            fds[0],
            size,
            {"ro": lib.BLK_READ_ONLY, "shared": lib.BLK_SHARED, "private": lib.BLK_PRIVATE}[access],
            fds[1] if len(fds) > 1 else -1,
            text[: lib.BLK_SERIAL],
            block_size,
        )
        if device != ffi.NULL:
            fds.clear()  # They are the device's now.
        return Blk(machine, device, name, access, size, own_thread)
    finally:
        for fd in fds:
            os.close(fd)


def _overlay(where: str, folder: str | os.PathLike[str] | None) -> int:
    if folder is None:
        return os.memfd_create("hostd-overlay", os.MFD_CLOEXEC)
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        text = f"{where}: no overlay can be made in {os.fspath(folder)}: {(error.strerror or '').lower()}"
        raise DeviceError(error.errno or 0, text) from None
