"""One unikernel guest: its VM, slot table and vCPU, from a spec to a result."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from hostd.boot._abi import ffi as abi
from hostd.boot._abi import lib
from hostd.boot.address_map import lay_out
from hostd.boot.descriptors import STUB_SIZE
from hostd.boot.elf import Image
from hostd.boot.framebuffer import map_framebuffer
from hostd.boot.info import info_area
from hostd.boot.registers import enter_ring3
from hostd.boot.symbols import locate
from hostd.boot.unikernel import RamOptions, RegionRow, map_extra_rows, map_own, map_regions, write_tables
from hostd.kvm import Exit, Interrupted, Io, Mmio, System
from hostd.memory import SlotTable
from hostd.memory.frozen import map_frozen
from hostd.vmm import faults
from hostd.vmm._calls import ffi
from hostd.vmm._calls import lib as calls
from hostd.vmm.pause import Pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hostd.gdb.debugger import Debugger
    from hostd.vmm.hotplug import Plugs

FRAME_WORDS = 7  # pushed RAX, error code, RIP, CS, RFLAGS, RSP, SS
Report = Callable[[str, int | float | str], None]


@dataclass(frozen=True)
class Template:
    """What a guest goes on from: another's memory (a file), where rows lie in it, and what `Guest.freeze` returned."""

    memory: int
    rows: list[dict[str, Any]]
    state: dict[str, Any]


class Guest:
    """A guest ready to run.

    `descriptors` are the image's, the regions' and the bells', in the order of the spec (docs/guest-contract.md); the
    caller keeps them open as long as the guest lives. Raises OSError (KvmError and the slot table's errors among
    them) or ImageError when the host can't give what the spec asks for.
    """

    def __init__(self, spec: dict[str, Any], descriptors: list[int], console: int, report: Report) -> None:
        self.name: str = spec["name"]
        self._report = report
        self._regions: list[dict[str, Any]] = spec["regions"]
        image_descriptor, *rest = descriptors
        self._image_descriptor = image_descriptor
        region_descriptors, rest = rest[: len(self._regions)], rest[len(self._regions) :]
        self.bells, memory = rest[: spec["bells"]], rest[spec["bells"] :]
        self._template = Template(memory[0], **spec["template"]) if spec.get("template") else None
        image = Image.of(spec["image"])
        framebuffer_size = spec["framebuffer"]["size"] if spec["framebuffer"] else 0
        self.places = lay_out(spec["memory"], image, [r["size"] for r in self._regions], framebuffer_size)
        self._assemble(spec, region_descriptors, image)
        self._bind_doorbells()
        self._calls = ffi.gc(calls.calls_new() or _no_memory(self.name), calls.calls_free)
        self._page = abi.cast("struct guest_call *", self.table.hva(lib.GUEST_CALL_PAGE, 4096))
        self._open_calls(console)
        self.pause = Pause(self.vcpus)
        self.debugger: Debugger | None = None
        self.plugs: Plugs | None = None
        """what was added while it runs; None: nothing ever"""
        if self._template is not None:
            self._thaw(self._template.state)

    def _assemble(self, spec: dict[str, Any], region_descriptors: list[int], image: Image) -> None:
        with System.open() as system:
            self.vm = system.create_vm()
            self.vcpu = self.vm.create_vcpu(0)
            self.vcpus = [self.vcpu]
            enter_ring3(system, self.vcpu, image.entry, self.places.stack.end - 8)
        self.table = SlotTable(self.vm)
        self._map_own(spec, image)
        rows = [RegionRow(r["name"], d, r["access"]) for r, d in zip(self._regions, region_descriptors, strict=True)]
        map_regions(self.table, self.places, rows)
        info = info_area(spec, self.places, self.vcpu.tsc_khz, image.path)
        writable = [region["access"] == "rw" for region in self._regions]
        write_tables(self.table, image, self.places, writable, spec["slots"], info)

    def _map_own(self, spec: dict[str, Any], image: Image) -> None:
        """Add all rows but the regions': of a template those that hold its memory, else as the guest boots."""
        slots, framebuffer, options = spec["slots"], self.places.framebuffer, RamOptions(**spec["options"])
        frozen: set[int] = set()
        if self._template is None:
            map_own(self.table, image, self._image_descriptor, self.places, options)
        else:
            map_frozen(self.table, self._template.memory, self._template.rows, **options.of_row())
            frozen = {row["gpa"] for row in self._template.rows}
        map_extra_rows(self.table, [slot for slot in slots if slot["gpa"] not in frozen])
        if framebuffer is not None and framebuffer.start not in frozen:
            map_framebuffer(self.table, framebuffer.start, spec["framebuffer"])

    def _bind_doorbells(self) -> None:
        for number, bell in enumerate(self.bells):
            self.vm.ioeventfd(lib.GUEST_PORT_DOORBELL, bell, 4, datamatch=number, pio=True)

    def _open_calls(self, console: int) -> None:
        bells = ffi.new("int[]", self.bells)
        failed = calls.calls_open(
            self._calls,
            ffi.cast("void *", int(abi.cast("uintptr_t", self._page))),
            ffi.cast("struct slot_rows *", self.table.c_rows),
            console,
            self.vcpu.kick_fd,
            bells,
            len(self.bells),
        )
        if failed:
            raise OSError(
                -failed,
                f"guest {self.name}: cannot watch its {len(self.bells)} bells: {os.strerror(-failed)}",
            )
        handler = int(ffi.cast("uintptr_t", ffi.addressof(calls, "calls_exit")))
        self.vcpu.on_exit(handler, int(ffi.cast("uintptr_t", self._calls)))

    def allow_console(self, size: int) -> None:
        """Let the guest write `size` more bytes before `run` calls for the log's rotation."""
        self._calls.console_left = size

    def close(self) -> None:
        """Give back the VM and its memory; the guest must not be running."""
        calls.calls_close(self._calls)
        self.vcpu.close()
        self.table.close()
        self.vm.close()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Inside this context nothing of the guest changes."""
        with self.pause.paused():
            yield

    def freeze(self, _file: int) -> dict[str, Any]:
        """Return all that a guest made from this one's memory must know beside it. It must stand still.

        Raises KvmError.
        """
        from hostd.kvm.state import save_vcpu

        if self.plugs is not None and self.plugs.plugged:
            names = ", ".join(plug.name for plug in self.plugs.plugged)
            raise ValueError(f"{names} was added to it while it runs; `hostd unplug` it first")
        self.vcpu.settle()
        return {"vcpus": [save_vcpu(self.vcpu)], "waiting": bool(self._calls.waiting)}

    def _thaw(self, state: dict[str, Any]) -> None:
        """Go on where the template's guest was; a wait that it was in is over, with no bell."""
        from hostd.kvm.state import restore_vcpu

        restore_vcpu(self.vcpu, state["vcpus"][0])
        if state["waiting"]:
            self._page.result, self._page.args[0] = lib.GUEST_OK, 0

    @property
    def counters(self) -> dict[str, int]:
        """How often the guest waited, how many bytes it wrote to its console, and gave back of its memory."""
        counted = self._calls
        return {"waits": counted.waits, "console_bytes": counted.console_bytes, "given_back": counted.given_back}

    def ring_plugged(self) -> None:
        """Ring the bell that says that something was plugged or is to go; the vCPU must stand still."""
        calls.calls_plugged(self._calls)

    def rest(self, index: int = 0) -> None:
        """To be called by the vCPU's thread between steps: the guest may have to stand still."""
        self.pause.rest(index)

    def leave(self, index: int = 0) -> None:
        """To be called by the vCPU's thread when it runs the guest no more."""
        self.pause.leave(index)

    def share(self) -> dict[str, int]:
        """A unikernel doesn't patch its code."""
        return {"pages": 0, "changed": 0, "shared": 0}

    def step(self, index: int = 0) -> dict[str, Any] | None:
        """Run vCPU `index` until something happens that is not served in C; return the guest's result once it has one.

        None: go on. The caller looks at `console_full` and at whether the guest is to stop.
        """
        assert index == 0, "a unikernel has one vCPU"
        event = self._run() if self.debugger is None else self.debugger.run(index, self._run)
        if event is None or isinstance(event, Interrupted):
            return None
        if isinstance(event, Io) and event.port == lib.GUEST_PORT_CALL:
            return self._call()
        if isinstance(event, Io) and event.port == lib.GUEST_PORT_FAULT:
            return self._fault(event.data[0])
        if isinstance(event, Io) and event.port == lib.GUEST_PORT_DOORBELL:
            number = int.from_bytes(event.data[:4], "little")
            return self._error(f"rang bell {number}, but it has {len(self.bells)}")
        if isinstance(event, Mmio):
            verb = "wrote" if event.is_write else "read"
            what = self._describe(event.address, event.is_write)
            return self._error(f"{verb} {event.address:#x} ({what}) at {self._where(self.vcpu.regs.rip)}")
        return self._error(_unexpected(event))

    def _run(self) -> Exit:
        """Run the vCPU, but first to its end the wait in which the guest was interrupted."""
        if self._calls.waiting:
            calls.calls_go_on(self._calls)
            if self._calls.waiting and not self.vcpu.stopping:  # A signal, for the interpreter.
                return Interrupted()
        return self.vcpu.run()

    @property
    def console_full(self) -> bool:
        return bool(self._calls.console_left == 0)

    def _call(self) -> dict[str, Any] | None:
        number = self._page.number
        if number == lib.GUEST_CALL_EXIT:
            return {"outcome": "exit", "code": self._page.args[0] & 255, "message": "", "fault": None}
        if number == lib.GUEST_CALL_REPORT:
            self._page.result = self._take_report()
        elif number == lib.GUEST_CALL_GIVE_UP:
            gone = self.plugs is not None and self.plugs.give_up(self._page.args[0])
            self._page.result = lib.GUEST_OK if gone else lib.GUEST_EINVAL
        return None

    def _take_report(self) -> int:
        kind, value, name_size = self._page.args[0], self._page.args[1], self._page.args[2]
        size = name_size + (value if kind == lib.GUEST_REPORT_TEXT else 0)
        if not 0 < name_size <= lib.GUEST_NAME_SIZE or size > lib.GUEST_CALL_DATA:
            return lib.GUEST_EINVAL
        data = bytes(abi.buffer(self._page.data, size))
        name = data[:name_size].decode(errors="replace")
        if kind == lib.GUEST_REPORT_TEXT:
            self._report(name, data[name_size:].decode(errors="replace"))
        elif kind == lib.GUEST_REPORT_FLOAT:
            self._report(name, struct.unpack("<d", struct.pack("<Q", value))[0])
        elif kind == lib.GUEST_REPORT_INT:
            self._report(name, struct.unpack("<q", struct.pack("<Q", value))[0])
        else:
            return lib.GUEST_EINVAL
        return lib.GUEST_OK

    def exception_frame(self) -> bytes | None:
        """Return what lies on the stack of an exception's stub (faults.py); None: it was ring 3 that wrote the port."""
        registers, stack = self.vcpu.regs, lib.GUEST_FAULT_STACK
        # Only a stub's frame counts: ring 3 may write the port too, with a stack of its own choosing.
        stubs = range(lib.GUEST_SYSTEM_PAGE, lib.GUEST_SYSTEM_PAGE + 4096 - STUB_SIZE)
        if registers.rip not in stubs or not stack <= registers.rsp <= stack + 4096 - 8 * (FRAME_WORDS - 1):
            return None
        return bytes(self.table.read(registers.rsp, min(8 * FRAME_WORDS, stack + 4096 - registers.rsp)))

    def _fault(self, vector: int) -> dict[str, Any]:
        frame = self.exception_frame()
        if frame is None:
            return self._error(f"wrote {vector:#x} to the fault port at {self._where(self.vcpu.regs.rip)}")
        fault = faults.decode(vector, frame, self.vcpu.sregs.cr2, self._locate, self._describe)
        return {
            "outcome": "fault",
            "code": 128 + vector,
            "message": f"guest {self.name}: {fault.sentence()}",
            "fault": fault.describe(),
        }

    def _error(self, what: str) -> dict[str, Any]:
        return {"outcome": "error", "code": 125, "message": f"guest {self.name}: {what}", "fault": None}

    def _locate(self, address: int) -> str | None:
        with os.fdopen(os.dup(self._image_descriptor), "rb") as file:
            return locate(file, address)

    def _where(self, address: int) -> str:
        name = self._locate(address)
        return f"{name} ({address:#x})" if name else f"{address:#x}"

    def _describe(self, address: int, writing: bool) -> str:
        """Say what lies at a guest address."""
        for region, span in zip(self._regions, self.places.regions, strict=True):
            if span.start <= address < span.end:
                read_only = ", mapped read-only" if region["access"] == "ro" else ""
                return f"region {region['name']} + {address - span.start:#x}{read_only}"
        guard = self.places.stack.start
        if guard - 4096 <= address < guard:
            return "the guard page below the stack: stack overflow"
        if address < 4096:
            return "null pointer"
        row = self.table.find(address)
        if row is None:
            return "no memory there"
        return f"row {row.name} + {address - row.gpa:#x}{', not writable' if writing else ''}"


def _no_memory(name: str) -> NoReturn:
    raise OSError(errno.ENOMEM, f"guest {name}: the host has no memory for its calls")


def _unexpected(event: Exit) -> str:
    return f"its vCPU stopped: {event}"
