"""One Linux guest: its VM, slot table, vCPUs and devices, from a spec to a result."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hostd.boot.address_map import Span, round_up
from hostd.boot.errors import ImageError
from hostd.boot.framebuffer import map_framebuffer
from hostd.boot.linux import cpuid
from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import LinuxMap, lay_out
from hostd.boot.linux.patched import own_code, share_code
from hostd.boot.linux.ram import ram_of
from hostd.boot.linux.registers import enter_kernel
from hostd.boot.linux.rows import map_guest
from hostd.boot.linux.tables import write_tables
from hostd.boot.unikernel import RamOptions
from hostd.devices.machine import Machine
from hostd.devices.virtio import add_balloon, add_blk, add_console, add_net, add_pmem, add_rng
from hostd.devices.virtio.pmem import span
from hostd.kvm import Interrupted, Io, Mmio, Shutdown, System, Vcpu
from hostd.memory import RegionBacking, SlotTable
from hostd.memory.frozen import map_frozen
from hostd.memory.layout import PAGE
from hostd.vmm.guest import Template
from hostd.vmm.pause import Pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hostd.gdb.debugger import Debugger

Report = Callable[[str, int | float | str], None]

AGENT_PORT = "hostd.agent"
"""the virtio-console port on which hostd's agent answers (docs/agent-protocol.md)"""
WINDOW_UNIT = 1 << 30
PANIC, TRIPLE_FAULT = 134, 136
"""exit codes: as of a process that aborts, and of one that dies of exception 8"""


class LinuxGuest:
    """A guest ready to run.

    `descriptors` are the kernel's, the regions', the bells', the archive's, the initrd's, the disks' and a template's
    memory's, in the order of the spec; the caller keeps them open as long as the guest lives. Raises OSError or
    ImageError when the host can't give what the spec asks for.
    """

    def __init__(self, spec: dict[str, Any], descriptors: list[int], console: int, report: Report) -> None:
        self.name: str = spec["name"]
        kernel_file, *rest = descriptors
        count = len(spec["regions"])
        regions, rest = rest[:count], rest[count:]
        self.bells, rest = rest[: spec["bells"]], rest[spec["bells"] :]
        archive, initrd, *disks = rest
        template = Template(disks.pop(), **spec["template"]) if spec.get("template") else None
        self.disk_marks = [_mark(disk) for disk in disks]
        boot = spec["image"]
        self._cache: str = boot["cache"]
        self._kernel = kernel = Kernel.of(boot["kernel"])
        if spec["framebuffer"]:  # PVH has no words for a picture.
            self._kernel = kernel = replace(kernel, pvh=None)
        with System.open() as system:
            self._supported = system.supported_cpuid()
            self.vm = system.create_vm()
            self.vm.set_tss_addr()
            self.vm.irqchip()
            self.vcpus = [self._vcpu(system, number, boot["vcpus"]) for number in range(boot["vcpus"])]
        self.table = SlotTable(self.vm)
        places, pmem = self._lay_out(spec, kernel, os.fstat(archive).st_size)
        self._frozen: frozenset[int] = frozenset()
        if template is None:
            self._fill_memory(spec, places, kernel_file, initrd, _contents(archive))
            enter_kernel(self.vcpus[0], kernel)
        else:
            self._map_template(spec, places, template)
        self.machine = Machine(self.vm, self.table, places.pci64)
        self._plug_in(spec, console, regions, disks, pmem)
        if template is not None:
            from hostd.vmm.linux_state import restore

            restore(self, template)
        for vcpu in self.vcpus:
            vcpu.on_exit(*self.machine.exit_handler)
        self.pause = Pause(self.vcpus)
        self.debugger: Debugger | None = None
        self.machine.start()
        self._copier: threading.Thread | None = None
        if template is None:
            self._copier = threading.Thread(target=own_code, args=(self.table, kernel), name="code", daemon=True)
            self._copier.start()

    def _vcpu(self, system: System, number: int, count: int) -> Vcpu:
        vcpu = self.vm.create_vcpu(number)
        deadline = bool(system.capability("TSC_DEADLINE_TIMER"))
        cpuid.prepare_vcpu(vcpu, self._supported, number, count, deadline=deadline)
        return vcpu

    def _lay_out(self, spec: dict[str, Any], kernel: Kernel, archive_size: int) -> tuple[LinuxMap, int]:
        """Return the layout, and the address from which pmem disks lie."""
        boot = spec["image"]
        bits = cpuid.physical_bits(self._supported)
        places = lay_out(spec["memory"], kernel, boot["initrd_size"], archive_size, bits)
        pmem, framebuffer = places.pci64.start, spec["framebuffer"]
        files = sum(span(disk["size"]) for disk in boot["disks"] if disk["device"] == "pmem")
        places = _behind(places, files + (round_up(framebuffer["size"], PAGE) if framebuffer else 0))
        options = RamOptions(**spec["options"])
        # What a template's kernel has patched, all clones share anyway.
        self._copied = options.copied or bool(spec.get("template"))
        # What a switch is to read and write must be memory that it can be given.
        self._ram = ram_of(places, options, shared=bool(spec.get("networks")))
        self._framebuffer = None if framebuffer is None else framebuffer | {"gpa": pmem + files}
        return places, pmem

    def _fill_memory(
        self, spec: dict[str, Any], places: LinuxMap, kernel_file: int, initrd: int, archive: bytes
    ) -> None:
        """Fill the slot table as the kernel is to find it."""
        boot, options, kernel = spec["image"], RamOptions(**spec["options"]), self._kernel
        map_guest(self.table, kernel, kernel_file, initrd, boot["initrd_size"], archive, places, options, self._ram)
        if self._framebuffer is not None:
            map_framebuffer(self.table, self._framebuffer["gpa"], self._framebuffer)
        write_tables(self.table, kernel, places, boot["cmdline"], boot["vcpus"], self._framebuffer)

    def _map_template(self, spec: dict[str, Any], places: LinuxMap, template: Template) -> None:
        """Fill the slot table with what another guest had in its memory."""
        options = RamOptions(**spec["options"])
        shared = self._ram.at if self._ram.shared else None
        map_frozen(self.table, template.memory, template.rows, shared=shared, **options.of_row())
        self._frozen = frozenset(row["gpa"] for row in template.rows)
        if self._framebuffer is not None and self._framebuffer["gpa"] not in self._frozen:
            map_framebuffer(self.table, self._framebuffer["gpa"], self._framebuffer)

    def _plug_in(self, spec: dict[str, Any], console: int, regions: list[int], disks: list[int], pmem: int) -> None:
        """Add the devices: regions first, so that their PCI addresses are known beforehand (handover.py)."""
        machine, boot, folder = self.machine, spec["image"], f"{spec['dir']}/guests/{self.name}"
        log = f"{spec['dir']}/logs/{self.name}.log"
        self.terminal = machine.add_terminal(console, log, spec["log_limit"], f"{folder}.console.sock")
        machine.add_serial()
        machine.add_power()
        for region, descriptor, doorbells in zip(spec["regions"], regions, spec["doorbells"], strict=True):
            machine.add_ivshmem(
                region["name"],
                RegionBacking(descriptor),
                region["size"],
                region["access"],
                peer=doorbells["peer"],
                peers=[[self.bells[number] for number in vectors] for vectors in doorbells["peers"]],
                waits=[self.bells[number] for number in doorbells["waits"]],
            )
        for number, (disk, descriptor) in enumerate(zip(boot["disks"], disks, strict=True)):
            if disk["device"] == "pmem":
                name = f"pmem.{number}"
                add_pmem(machine, self.table, descriptor, disk["access"], gpa=pmem, name=name, there=self._frozen)
                pmem += span(disk["size"])
            else:
                add_blk(machine, descriptor, disk["access"], name=f"disk.{number}")
        for network in spec.get("networks", ()):
            card = {"mac": network["mac"], "mtu": network["mtu"], "queues": network["queues"]}
            add_net(machine, self.table, network["path"], name=network["name"], **card)
        ports = {AGENT_PORT: f"{folder}.agent.sock"} | {name: f"{folder}.{name}.sock" for name in boot["ports"]}
        add_console(machine, ports, terminal=self.terminal)
        add_rng(machine)
        self.balloon = add_balloon(machine, self.table, clone=bool(self._frozen)) if boot["balloon"] else None
        self._disks: list[str] = [disk["access"] for disk in boot["disks"]]

    def allow_console(self, size: int) -> None:
        """Nothing to do: the terminal keeps the log within its limit."""

    @property
    def console_full(self) -> bool:
        return False

    def close(self) -> None:
        """Give back the VM and its memory; the guest must not be running."""
        if self._copier is not None:
            self._copier.join()
        self.machine.close()
        for vcpu in self.vcpus:
            vcpu.close()
        self.table.close()
        self._ram.close()
        self.vm.close()

    @property
    def counters(self) -> dict[str, Any]:
        """Exits by vCPU, and what the devices count."""
        return {"vcpus": [vcpu.counters for vcpu in self.vcpus], "devices": self.machine.describe()}

    def rest(self, index: int) -> None:
        """To be called by the thread of vCPU `index` between steps: the guest may have to stand still."""
        self.pause.rest(index)

    def leave(self, index: int) -> None:
        """To be called by the thread of vCPU `index` when it runs it no more."""
        self.pause.leave(index)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Inside this context nothing of the guest changes: neither vCPUs nor devices run. Raises DeviceError."""
        if self._copier is not None:
            self._copier.join()
        with self.pause.paused(), self.machine.held():
            yield

    def freeze(self, file: int) -> dict[str, Any]:
        """Return all that a guest made from this one's memory must know beside it. It must be `still`.

        What it wrote to private disks goes to the end of `file`. Raises ValueError: it can't be frozen; KvmError,
        DeviceError, BackingError.
        """
        from hostd.vmm.linux_state import save

        for number, access in enumerate(self._disks):
            if access == "shared":
                raise ValueError(
                    f"its disk {number} is shared, and clones would write to one file, each as if it were alone; "
                    'give it access "ro" or "private"'
                )
        return save(self, file)

    def share(self) -> dict[str, int]:
        """Share the code that the guest's kernel has patched, with other guests of that kernel.

        Raises OSError.
        """
        if self._copied:
            return {"pages": 0, "changed": 0, "shared": 0}
        if self._copier is not None:
            self._copier.join()
        return share_code(self.table, self._kernel, Path(self._cache), self.pause.paused).describe()

    def step(self, index: int) -> dict[str, Any] | None:
        """Run vCPU `index` until something happens that is not served in C; return the result once there is one."""
        run = self.vcpus[index].run
        event = run() if self.debugger is None else self.debugger.run(index, run)
        if event is None or isinstance(event, Interrupted):
            return None
        power = self.machine.handle_pending()
        if power is not None:
            return self._ended(power)
        if isinstance(event, Io | Mmio):
            return None
        if isinstance(event, Shutdown):
            return self._result("fault", TRIPLE_FAULT, "triple fault: an exception that its kernel couldn't handle")
        return self._result("error", 125, f"its vCPU {index} stopped: {event}")

    def _ended(self, power: str) -> dict[str, Any]:
        if self.terminal.panic:
            return self._result("panic", PANIC, self.terminal.panic)
        if power == "off":
            return self._result("exit", 0, "")
        return self._result("reboot", 0, "it rebooted")

    def _result(self, outcome: str, code: int, what: str) -> dict[str, Any]:
        message = f"guest {self.name}: {what}" if what else ""
        return {"outcome": outcome, "code": code, "message": message, "fault": None}


def _behind(places: LinuxMap, size: int) -> LinuxMap:
    """Move the start of the 64-bit PCI window behind `size` bytes of pmem and picture."""
    start = places.pci64.start + round_up(size, WINDOW_UNIT)
    if start >= places.pci64.end:
        raise ImageError(
            f"{size} bytes of pmem disks and frame buffer don't fit into the guest's physical addresses; use blk disks"
        )
    return replace(places, pci64=Span(start, places.pci64.end))


def _mark(disk: int) -> list[int]:
    """Return what tells whether a disk has changed: its size, and the time of its last change in ns."""
    found = os.fstat(disk)
    return [found.st_size, found.st_mtime_ns]


def _contents(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
