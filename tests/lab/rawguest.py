"""A Linux guest with the least around it: KVM's irqchip, a 16550 in Python, the ACPI ports; nothing of hostd.vmm."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hostd.boot.linux import layout
from hostd.boot.linux.cpuid import physical_bits, prepare_vcpu
from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import lay_out
from hostd.boot.linux.registers import enter_kernel
from hostd.boot.linux.rows import map_guest
from hostd.boot.linux.tables import write_tables
from hostd.boot.unikernel import RamOptions
from hostd.kvm import Interrupted, Io, Mmio, Shutdown, System, Vcpu
from hostd.memory import SlotTable

HOST_BRIDGE = struct.pack("<HHHHB3sI", 0x1B36, 0x0008, 0, 0, 0, b"\0\0\6", 0).ljust(256, b"\0")
"""configuration space of 00:00.0, which never changes: all the PCI there is"""
CONSOLE = "console=ttyS0 earlyprintk=ttyS0 panic=-1"


class Serial:
    """As much of a 16550 as Linux's driver and console look at (National Semiconductor PC16550D, register summary)."""

    def __init__(self, raise_line) -> None:
        self.output = bytearray()
        self._registers = bytearray(8)
        self._divisor = bytearray(2)
        self._raise_line = raise_line
        self._empty = False

    def write(self, register: int, value: int) -> None:
        if register < 2 and self._registers[3] & 0x80:
            self._divisor[register] = value
            return
        if register == 0 and not self._registers[4] & 0x10:
            self.output.append(value)
        if register != 0:
            self._registers[register] = value
        if register < 2 and self._registers[1] & 2:  # "Transmitter holding register empty" interrupts are on.
            self._empty = True
            self._raise_line()

    def read(self, register: int) -> int:
        if register < 2 and self._registers[3] & 0x80:
            return self._divisor[register]
        if register == 0:
            return 0
        if register == 2:
            found, self._empty = (2 if self._empty else 1), False
            return found | (0xC0 if self._registers[2] & 1 else 0)
        if register == 5:
            return 0x60
        if register == 6:
            modem = self._registers[4]
            if modem & 0x10:  # Loopback: outputs come back as inputs.
                return (modem & 2) << 3 | (modem & 1) << 5 | (modem & 4) << 4 | (modem & 8) << 4
            return 0xB0
        return self._registers[register]


@dataclass
class RawGuest:
    """A guest that `run` runs to its end; `ending` says which: "off", "reset", "fault" or "stopped"."""

    kernel: Kernel
    memory: int = 256 << 20
    vcpus: int = 1
    cmdline: str = CONSOLE
    initrd: Path | None = None
    extra: bytes = b""
    options: RamOptions = field(default_factory=RamOptions)
    pit: bool = False
    ending: str = ""
    exits: dict[str, int] = field(default_factory=dict)
    on_line: object = None

    def __post_init__(self) -> None:
        with contextlib.ExitStack() as stack, System.open() as system:
            supported = system.supported_cpuid()
            deadline = system.capability("TSC_DEADLINE_TIMER") > 0
            self.vm = system.create_vm()
            self.vm.set_tss_addr()
            self.vm.irqchip()
            if self.pit:
                self.vm.pit()
            kernel_fd = os.open(self.kernel.path, os.O_RDONLY)
            stack.callback(os.close, kernel_fd)
            initrd_fd, size = None, 0
            if self.initrd:
                initrd_fd = os.open(self.initrd, os.O_RDONLY)
                stack.callback(os.close, initrd_fd)
                size = os.fstat(initrd_fd).st_size
            self.places = lay_out(self.memory, self.kernel, size, len(self.extra), physical_bits(supported))
            self.table = SlotTable(self.vm)
            map_guest(self.table, self.kernel, kernel_fd, initrd_fd, size, self.extra, self.places, self.options)
            write_tables(self.table, self.kernel, self.places, self.cmdline, self.vcpus)
            self.cpus = [self.vm.create_vcpu(index) for index in range(self.vcpus)]
            for index, vcpu in enumerate(self.cpus):
                prepare_vcpu(vcpu, supported, index, self.vcpus, deadline=deadline)
        enter_kernel(self.cpus[0], self.kernel)
        self.serial = Serial(self._serial_interrupt)
        self._config_address = 0
        self._hold, self._held = False, 0
        self._lock = threading.Lock()

    def __enter__(self) -> RawGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()
        for vcpu in self.cpus:
            vcpu.close()
        self.vm.close()

    def run(self, timeout: float = 100) -> str:
        """Run until the guest ends or `timeout` seconds are over; return what it wrote to its console."""
        threads = [threading.Thread(target=self._run_vcpu, args=(vcpu,)) for vcpu in self.cpus]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout
        while not self.ending and time.monotonic() < deadline:
            time.sleep(0.05)
        self.end("stopped")
        for thread in threads:
            thread.join()
        return self.console

    @property
    def console(self) -> str:
        return self.serial.output.decode(errors="replace").replace("\r\n", "\n")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep every vCPU from running."""
        with self._lock:
            self._hold, self._held = True, 0
            for vcpu in self.cpus:
                vcpu.stop()
        while self._held < len(self.cpus) and not self.ending:
            time.sleep(0.001)
        yield
        self._hold = False

    def end(self, how: str) -> None:
        self.ending = self.ending or how
        for vcpu in self.cpus:
            vcpu.stop()

    def _serial_interrupt(self) -> None:
        self.vm.irq_line(layout.SERIAL_GSI, True)
        self.vm.irq_line(layout.SERIAL_GSI, False)

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        while not self.ending:
            event = vcpu.run()
            with self._lock:
                self._serve(vcpu, event)
                self._held += 1
            while self._hold and not self.ending:
                time.sleep(0.001)

    def _serve(self, vcpu: Vcpu, event: object) -> None:
        match event:
            case Io():
                self._count(f"port {event.port:#x}")
                if event.is_write:
                    for at in range(0, len(event.data), event.size):
                        self._out(event.port, event.data[at : at + event.size])
                else:
                    vcpu.reply(b"".join(self._in(event.port, event.size) for _ in range(event.count)))
            case Mmio():
                self._count(f"memory {event.address & ~0xFFF:#x}")
                if not event.is_write:
                    within = event.address in range(layout.ECAM.start, layout.ECAM.end)
                    vcpu.reply(
                        self._ecam(event.address - layout.ECAM.start, event.size) if within else b"\xff" * event.size
                    )
            case Interrupted():
                pass
            case Shutdown():
                self.end("fault")
            case _:
                self.serial.output += f"\nexit: {event}\n".encode()
                self.end("fault")

    def _count(self, what: str) -> None:
        self.exits[what] = self.exits.get(what, 0) + 1

    def _out(self, port: int, data: bytes) -> None:
        if layout.SERIAL_PORT <= port < layout.SERIAL_PORT + 8:
            self.serial.write(port - layout.SERIAL_PORT, data[0])
            if self.on_line and data == b"\n":
                self.on_line(self)
        elif port == layout.CONFIG_PORT and len(data) == 4:
            self._config_address = int.from_bytes(data, "little")
        elif port == layout.SLEEP_CONTROL_PORT and data[0] == layout.POWER_OFF_VALUE:
            self.end("off")
        elif port == layout.RESET_PORT and data[0] == layout.RESET_VALUE:
            self.end("reset")

    def _in(self, port: int, size: int) -> bytes:
        if layout.SERIAL_PORT <= port < layout.SERIAL_PORT + 8:
            return bytes([self.serial.read(port - layout.SERIAL_PORT)]) + bytes(size - 1)
        if port == layout.CONFIG_PORT and size == 4:
            return self._config_address.to_bytes(4, "little")
        if layout.CONFIG_PORT + 4 <= port < layout.CONFIG_PORT + 8 and self._config_address >> 31:
            return self._config(self._config_address & 0xFFFFFC | port & 3, size)
        if port in (layout.SLEEP_CONTROL_PORT, layout.SLEEP_STATUS_PORT):
            return bytes(size)
        return b"\xff" * size

    def _config(self, address: int, size: int) -> bytes:
        """Read configuration space by its address in mechanism 1: bus << 16 | slot << 11 | function << 8 | register."""
        if address >> 8:
            return b"\xff" * size
        return HOST_BRIDGE[address & 0xFF :][:size]

    def _ecam(self, offset: int, size: int) -> bytes:
        if offset >= 256:
            return b"\xff" * size if offset >> 12 else bytes(size)
        return HOST_BRIDGE[offset:][:size]
