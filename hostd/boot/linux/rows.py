"""Put a Linux guest's memory into its slot table: kernel and initrd mapped from their files, RAM anonymous."""

from __future__ import annotations

from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import LinuxMap
from hostd.boot.unikernel import RamOptions
from hostd.memory import SlotTable


def map_guest(
    table: SlotTable,
    kernel: Kernel,
    kernel_fd: int,
    initrd_fd: int | None,
    initrd_size: int,
    extra: bytes,
    places: LinuxMap,
    options: RamOptions,
) -> None:
    """Add the guest's rows to `table`; the descriptors stay the caller's.

    `kernel_fd` is a descriptor of `kernel.path`, `extra` an uncompressed cpio archive that lands behind the initrd.
    Rows: "low", "kernel.text", "kernel.data"..., "initrd", "extra", "ram.0"... Raises SlotError, BackingError, KvmError.
    """
    raise NotImplementedError
