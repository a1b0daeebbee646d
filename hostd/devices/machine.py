"""The devices of one Linux guest: adding them, starting them, and what of them is left to Python."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hostd.boot.linux import layout
from hostd.devices._devices import ffi, lib

if TYPE_CHECKING:
    from hostd.boot.address_map import Span
    from hostd.kvm import Vm
    from hostd.memory import Row, SlotTable
    from hostd.memory.backings import Backing
    from hostd.memory.table import Access

POWER = ("on", "off", "reset")
BAR_KINDS = {1: "registers", 2: "memory"}
MOVES = 64
CHECK = struct.Struct("<I")
"""before a saved state: its CRC-32"""


class DeviceError(OSError):
    """A device could not be made; `errno` says why, the message which and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class Terminal:
    """The far end of the guest's consoles: its log and those attached to its socket (terminal.h)."""

    def __init__(self, machine: Any, log: int, log_path: str | None, log_limit: int, socket: str | None) -> None:
        self.c = ffi.new("struct terminal *")
        path = ffi.NULL if log_path is None else os.fsencode(log_path)
        where = ffi.NULL if socket is None else os.fsencode(socket)
        failed = -lib.terminal_open(self.c, ffi.addressof(machine, "loop"), log, path, log_limit, where)
        if failed:
            raise DeviceError(failed, f"the console's socket {socket} can't be made: {os.strerror(failed)}")

    @property
    def panic(self) -> str:
        """The line in which the guest's kernel said that it panicked; empty if it did not."""
        return str(ffi.string(self.c.panic).decode(errors="replace"))

    def describe(self) -> dict[str, Any]:
        return {"written": self.c.written, "lost": self.c.lost, "panic": self.panic}


class Face(Protocol):
    """The Python side of a device on the PCI bus."""

    @property
    def slot(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Return what it counts, as plain values."""

    def close(self) -> None:
        """Give back what is not the machine's; after the machine was closed."""


class _Ivshmem:
    """The Python side of a region's device."""

    def __init__(self, machine: Any, slot: int, peer: int, peers: Sequence[Sequence[int]], waits: int) -> None:
        self.slot = slot
        self._machine, self._peer, self._waits = machine, peer, waits
        self._vectors = [len(vectors) for vectors in peers]

    def describe(self) -> dict[str, Any]:
        counters = ffi.new("struct ivshmem_counters *")
        lib.ivshmem_count(self._machine, self.slot, counters)
        return {
            "peer": self._peer,
            "peer_vectors": self._vectors,
            "bells": self._waits,
            "doorbell_exits": counters.rings,
            "doorbells_to_nobody": counters.unknown,
            "interrupts_passed_on": counters.interrupts,
        }

    def close(self) -> None:
        """All of it is the machine's."""


class _Memory:
    """What a memory BAR shows, and the row that shows it."""

    def __init__(self, name: str, size: int, backing: Backing, access: Access) -> None:
        self.name, self.size, self.backing, self.access = name, size, backing, access
        self.row: Row | None = None


class Machine:
    """The buses, devices and I/O thread of a guest.

    Add devices, start it, hand `exit_handler` to the vCPUs. `vm` and `table` None: no guest, interrupts are recorded
    (for tests). `pci64` is the window for 64-bit BARs; all other addresses are those of `hostd.boot.linux.layout`.
    Raises DeviceError.
    """

    def __init__(self, vm: Vm | None, table: SlotTable | None, pci64: Span) -> None:
        self._table = table
        self._memory: dict[tuple[int, int], _Memory] = {}
        self._pending = threading.Lock()
        self.terminal: Terminal | None = None
        self.faces: list[Face] = []
        """the Python sides of devices that have one"""
        place = ffi.new(
            "struct pci_place *",
            {
                "ecam": layout.ECAM.start,
                "config_port": layout.CONFIG_PORT,
                "low_start": layout.PCI_WINDOW.start,
                "low_end": layout.PCI_WINDOW.end,
                "high_start": pci64.start,
                "high_end": pci64.end,
                "first_gsi": layout.PCI_FIRST_GSI,
                "gsis": layout.PCI_GSIS,
            },
        )
        self.memory = ffi.NULL if table is None else ffi.cast("struct slot_rows *", table.c_rows)
        self.c = lib.machine_new(self.memory, -1 if vm is None else vm.fd, place)
        if not self.c:
            raise DeviceError(ffi.errno, f"the guest's devices can't be made: {os.strerror(ffi.errno)}")

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- adding devices; before `start` ---------------------------------------------------------------------

    def add_terminal(
        self, log: int = -1, log_path: str | None = None, log_limit: int = 0, socket: str | None = None
    ) -> Terminal:
        """Give the consoles a far end: the descriptor `log`, and the Unix socket `socket` (a path) to attach to.

        With `log_path`, the log's own path, it is renamed to PATH.1 at `log_limit` bytes and a new one begun.
        """
        self.terminal = Terminal(self.c, log, log_path, log_limit, socket)
        return self.terminal

    def add_serial(self) -> None:
        """Add COM1, which writes to the terminal and reads from it."""
        assert self.terminal is not None, "the terminal comes first"
        check(lib.serial_add(self.c, layout.SERIAL_PORT, layout.SERIAL_GSI, self.terminal.c), "the serial port")

    def add_power(self) -> None:
        """Add the ACPI registers by which the guest powers off or resets."""
        port, kind, value = layout.SLEEP_CONTROL_PORT, layout.SLEEP_TYPE_OFF, layout.RESET_VALUE
        check(lib.power_add(self.c, port, kind, value), "the power registers")

    def add_ivshmem(
        self,
        name: str,
        backing: Backing,
        size: int,
        access: Access,
        *,
        peer: int = 0,
        peers: Sequence[Sequence[int]] = (),
        waits: Sequence[int] = (),
    ) -> str:
        """Add the region `name` of `size` bytes as an ivshmem device; return its PCI address.

        `peers[p][v]` is the eventfd of peer p's vector v, `peers[peer]` this guest's own; `waits` are eventfds of the
        region which also interrupt it. The caller keeps them all open. Without `peers`: a region without interrupts.
        """
        # A BAR is a power of two; behind the region's end it shows nothing.
        bar_size = 1 << (size - 1).bit_length()
        own = ffi.new("int[]", list(peers[peer]) if peers else [])
        bells = ffi.new("int[]", list(waits))
        doorbells = [(p, v, fd) for p, vectors in enumerate(peers) for v, fd in enumerate(vectors)]
        others = ffi.new("struct ivshmem_peer[]", doorbells)
        text = ffi.new("char[]", name.encode())
        config = ffi.new(
            "struct ivshmem_config *",
            (text, bar_size, peer if peers else 0, own, len(own), bells, len(bells), others, len(others)),
        )
        slot = check(lib.ivshmem_add(self.c, config), f"region {name} as a PCI device")
        self.faces.append(_Ivshmem(self.c, slot, peer if peers else 0, peers, len(waits)))
        self.show_memory(slot, 2, name, size, backing, access)
        return pci_address(slot)

    def show_memory(self, slot: int, bar: int, name: str, size: int, backing: Backing, access: Access) -> None:
        """Have the memory BAR `bar` of the device in `slot` show `size` bytes of `backing`: a row of the table."""
        self._memory[slot, bar] = _Memory(name, size, backing, access)
        self._follow()

    # --- running --------------------------------------------------------------------------------------------

    @property
    def exit_handler(self) -> tuple[int, int]:
        """Function and context for `Vcpu.on_exit`: all ports and addresses that are not memory."""
        return int(ffi.cast("uintptr_t", ffi.addressof(lib, "machine_exit"))), int(ffi.cast("uintptr_t", self.c))

    def start(self) -> None:
        """Start the I/O thread. Raises DeviceError."""
        check(lib.machine_start(self.c), "the devices' thread")

    def stop(self) -> None:
        """End the I/O thread; devices answer accesses, but do nothing on their own any more."""
        lib.machine_stop(self.c)

    def close(self) -> None:
        """Give everything back; no vCPU may be running."""
        if self.c:
            lib.machine_stop(self.c)
            if self.terminal is not None:
                lib.terminal_close(self.terminal.c)
                self.terminal = None
            lib.machine_free(self.c)
            self.c = ffi.NULL
            for face in self.faces:
                face.close()

    def handle_pending(self) -> str | None:
        """Do what an Io or Mmio exit came up for; the exit itself is complete. Any vCPU's thread may call it.

        Returns "off" or "reset" once the guest has asked for that, else None: run on. Raises SlotError, BackingError
        when memory that the guest has moved can't be mapped.
        """
        with self._pending:
            self._follow()
        power = POWER[self.c.power]
        return None if power == "on" else power

    def _follow(self) -> None:
        """Map memory BARs where the guest has moved them: first all go, for two may have changed places."""
        moves = ffi.new("struct machine_move[]", MOVES)
        while count := lib.machine_moves(self.c, moves, MOVES):
            moving = [(move, self._memory.get((move.slot, move.bar))) for move in moves[0:count]]
            for _, memory in moving:
                if memory is not None and memory.row is not None and self._table is not None:
                    self._table.remove(memory.row)
                    memory.row = None
            for move, memory in moving:
                if memory is not None and self._table is not None:
                    memory.row = self._table.add(
                        move.to, memory.size, memory.backing, name=memory.name, access=memory.access
                    )
                lib.machine_moved(self.c, move.slot, move.bar, move.to)

    # --- templates ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside this context its devices do nothing on their own; no vCPU may run. Raises DeviceError."""
        lib.machine_hold(self.c)
        try:
            yield
        finally:
            check(lib.machine_release(self.c), "the devices' thread")

    def save(self) -> bytes:
        """Return what the devices know, for `restore`; they must be held. Raises DeviceError."""
        why = ffi.new("char[]", lib.STATE_WHY)
        size = lib.machine_save(self.c, ffi.NULL, 0, why)
        data = ffi.new("uint8_t[]", max(size, 0) + 1)
        if size < 0 or lib.machine_save(self.c, data, size, why) < 0:
            raise DeviceError(errno.EBUSY, f"its devices can't be saved: {ffi.string(why).decode(errors='replace')}")
        found = bytes(ffi.buffer(data, size))
        return CHECK.pack(zlib.crc32(found)) + found

    def restore(self, state: bytes) -> None:
        """Put back what `save` returned of a machine with the same devices; before `start`, when all memory is there.

        Raises DeviceError: this machine's devices aren't those, or it is damaged; then it is only good for closing.
        SlotError, BackingError: memory of theirs can't be mapped.
        """
        data = state[CHECK.size :]
        if len(state) < CHECK.size or CHECK.unpack_from(state)[0] != zlib.crc32(data):
            raise DeviceError(errno.EINVAL, "the saved state of its devices is damaged; make the template again")
        why = ffi.new("char[]", lib.STATE_WHY)
        if lib.machine_restore(self.c, ffi.from_buffer("uint8_t[]", data), len(data), why):
            text = ffi.string(why).decode(errors="replace")
            raise DeviceError(errno.EINVAL, f"the saved state of its devices doesn't fit this guest: {text}")
        self._follow()

    # --- looking at it --------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the devices and counters as plain values, for `hostd inspect`; nothing once it is closed."""
        machine = self.c
        if not machine:
            return {}
        own = {face.slot: face.describe() for face in self.faces}
        devices = [_describe_device(machine.pci.devices[slot]) for slot in range(machine.pci.count)]
        return {
            "pci": [device | own.get(slot, {}) for slot, device in enumerate(devices)],
            "terminal": None if self.terminal is None else self.terminal.describe(),
            "power": POWER[machine.power],
            "accesses": {"ports": _accesses(machine.ports), "addresses": _accesses(machine.mmio)},
            "counters": {
                "port_exits": machine.port_exits,
                "mmio_exits": machine.mmio_exits,
                "unclaimed": machine.ports.unclaimed + machine.mmio.unclaimed,
                "bar_moves": machine.pci.moves,
                "bad_bar_moves": machine.pci.bad_moves,
                "messages": machine.kvm.messages,
                "line_changes": machine.kvm.lines,
                "routings": machine.kvm.routings,
                "thread_wakes": machine.loop.wakes,
                "thread_calls": machine.loop.calls,
            },
        }


def pci_address(slot: int) -> str:
    """Return the PCI address of the device in `slot` as lspci and sysfs write it."""
    return f"0000:00:{slot:02x}.0"


def check(result: int, what: str) -> int:
    """Return `result`; raises DeviceError naming `what` if it is -errno."""
    if result >= 0:
        return result
    full = -result == errno.ENOSPC
    hint = "; the bus has 31 devices and its windows are finite: give the guest fewer or smaller ones" if full else ""
    raise DeviceError(-result, f"{what} can't be added to the guest: {os.strerror(-result)}{hint}")


def _accesses(bus: Any) -> dict[str, int]:
    """How often each range of a bus was used, by its address."""
    ranges = [bus.ranges[number] for number in range(bus.count)]
    return {f"{each.address:#x}": each.accesses for each in ranges if each.accesses}


def _describe_device(device: Any) -> dict[str, Any]:
    config = bytes(ffi.buffer(device.config))
    bars = [(number, bar) for number, bar in enumerate(device.bars) if bar.kind]
    return {
        "address": pci_address(device.slot),
        "kind": ffi.string(device.ops.name).decode(),
        "name": ffi.string(device.name).decode(errors="replace"),
        "id": f"{int.from_bytes(config[0:2], 'little'):04x}:{int.from_bytes(config[2:4], 'little'):04x}",
        "bars": [
            {"bar": number, "kind": BAR_KINDS[bar.kind], "address": bar.address, "size": bar.size}
            for number, bar in bars
        ],
        "msix": {
            "vectors": device.msix.count,
            "enabled": bool(device.msix.enabled),
            "sent": device.msix.sent,
            "held": device.msix.held,
        },
    }
