"""The process of one guest: the vCPU's thread, and the main thread that answers the supervisor.

The process outlives its supervisor (unless the run is in the foreground) and keeps its guest's result until a
supervisor has taken it, so nothing a guest said is lost. Messages: docs/control-protocol.md, section "Guest processes".
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostd.boot import ImageError
from hostd.control.framing import FrameError, FrameReader, pack_frame
from hostd.vmm import heap
from hostd.vmm._calls import lib as calls
from hostd.vmm.guest import Guest
from hostd.vmm.memory_group import MemoryGroup, offer_to_oom_killer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hostd.vmm.ceiling import Ceiling
    from hostd.vmm.linux import LinuxGuest

HELLO = 1
"""version of the messages between a guest process and its supervisor"""
READ_LIMIT = 1 << 20
STACK_SIZE = 256 << 10
SEND_TIMEOUT = 5.0
REST_MS = 250
"""after so long at rest a process shares its heap: a batch of guests that start needs the processors for itself"""
KEPT = frozenset({"dir", "lifeline", "log_limit", "bells"})
"""of the spec, once the guest is made"""


class GuestProcess:
    """What the guest process knows of its guest, and the one connection to its supervisor."""

    def __init__(self, spec: dict[str, Any], descriptors: list[int]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.log, *self.descriptors = descriptors
        self.guest: Guest | LinuxGuest | None = None
        self.ceiling: Ceiling | None = None
        self.reports: dict[str, int | float | str] = {}
        self.result: dict[str, Any] | None = None
        self.stopping = False
        self.taken = False
        self.events: deque[dict[str, Any]] = deque()
        """from the vCPU's thread, for the supervisor"""
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.path = f"{spec['dir']}/guests/{self.name}.sock"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link: socket.socket | None = None
        self.frames = FrameReader()
        self.poll = select.poll()
        self.threads: list[threading.Thread] = []
        self.ending = threading.Lock()
        self.halted = False
        """whether a vCPU has come to the guest's end; under `ending`, which also guards the log's rotation"""
        self.stirred = True
        """whether the process has done something since it last shared its heap"""
        self.on_result: Callable[[], None] = lambda: None

    # --- the vCPU's thread -----------------------------------------------------------------------------------------

    def run_vcpu(self, index: int) -> None:
        """Run a vCPU to the guest's end; whatever happens becomes a result, the first one counts."""
        assert self.guest is not None
        guest, result = self.guest, None
        try:
            while result is None and not self.stopping:
                result = guest.step(index)
                guest.rest(index)
                if guest.console_full:
                    with self.ending:
                        self._rotate_log()
        except Exception as error:
            result = self._failure(f"guest {self.name}: {error}")
        guest.leave(index)
        if result is None:
            result = {
                "outcome": "killed",
                "code": 137,
                "message": f"guest {self.name}: stopped",
                "fault": None,
            }
        if self._halt():
            if guest.debugger is not None:
                guest.debugger.ended(result)
            self._tell({"event": "result", "result": result})

    def _halt(self) -> bool:
        """Have every vCPU come to its end; True for the one that is the first to ask."""
        assert self.guest is not None
        with self.ending:
            first, self.halted = not self.halted, True
        self.stopping = True
        self.guest.pause.end()
        for vcpu in self.guest.vcpus:
            vcpu.stop()
        return first

    def report(self, name: str, value: int | float | str) -> None:
        self._tell({"event": "report", "name": name, "value": value})

    def _tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        os.eventfd_write(self.wake, 1)

    def _rotate_log(self) -> None:
        """Keep the full log as NAME.log.1 and go on in a new one; under `ending`."""
        assert self.guest is not None
        if not self.guest.console_full:  # Another vCPU was faster.
            return
        log = f"{self.spec['dir']}/logs/{self.name}.log"
        with contextlib.suppress(OSError):
            os.replace(log, f"{log}.1")
            fresh = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.dup2(fresh, self.log, inheritable=False)
            os.close(fresh)
        self.guest.allow_console(self.spec["log_limit"])

    # --- the main thread -------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Be there for a supervisor; it may connect from now on."""
        self.listener.bind(self.path)
        os.chmod(self.path, 0o600)
        self.listener.listen(2)
        self.poll.register(self.listener, select.POLLIN)
        self.poll.register(self.wake, select.POLLIN)

    def main(self) -> None:
        """Start the guest and serve until its result has been taken."""
        try:
            if self.spec.get("group") is not None:
                MemoryGroup(Path(self.spec["group"])).join()
            self.guest = self._make()
            ceiling = self.spec.get("ceiling")
            for key in self.spec.keys() - KEPT:  # Each held memory that all guest processes shared before.
                del self.spec[key]
            self.guest.allow_console(self.spec["log_limit"])
        except (OSError, ValueError, ImageError, MemoryError) as error:
            self._tell({"event": "result", "result": self._failure(f"guest {self.name}: {error}")})
        else:
            threading.stack_size(STACK_SIZE)
            if ceiling is not None:
                self._hold_down(ceiling)
            for index in range(len(self.guest.vcpus)):
                thread = threading.Thread(target=self.run_vcpu, args=(index,), name=f"vcpu{index}", daemon=True)
                self.threads.append(thread)
                thread.start()
        while not self.taken:
            ready = self.poll.poll(REST_MS if self.stirred else None)
            if not ready:
                heap.share()
            self.stirred = bool(ready)
            for descriptor, _ in ready:
                if descriptor == self.wake:
                    os.eventfd_read(self.wake)
                elif descriptor == self.listener.fileno():
                    self._accept()
                else:
                    self._receive()
            self._deliver()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _make(self) -> Guest | LinuxGuest:
        if self.spec["kind"] == "unikernel":
            return Guest(self.spec, self.descriptors, self.log, self.report)
        # Only here: the processes of unikernels need none of it.
        from hostd.vmm.linux import LinuxGuest

        return LinuxGuest(self.spec, self.descriptors, self.log, self.report)

    def _hold_down(self, size: int) -> None:
        assert self.guest is not None
        from hostd.vmm.ceiling import Ceiling

        self.ceiling = Ceiling(self.guest.table, size)

    def close(self) -> None:
        """Give back what the guest had; for a process that goes on. The guest must have ended."""
        for thread in self.threads:
            thread.join()
        if self.ceiling is not None:
            self.ceiling.close()
        if self.guest is not None:
            self.guest.close()
        if self.link is not None:
            self._drop()
        self.listener.close()
        os.close(self.wake)

    def _failure(self, message: str) -> dict[str, Any]:
        return {"outcome": "error", "code": 125, "message": message, "fault": None}

    def _accept(self) -> None:
        """Take a supervisor's connection; the newest one counts."""
        link, _ = self.listener.accept()
        if self.link is not None:
            self._drop()
        link.settimeout(SEND_TIMEOUT)
        self.link, self.frames = link, FrameReader()
        self.poll.register(link, select.POLLIN)
        state = "starting" if self.guest is None else "running" if self.result is None else "ended"
        hello = {
            "hello": HELLO,
            "name": self.name,
            "pid": os.getpid(),
            "state": state,
            "reports": self.reports,
        }
        self._send(hello | {"result": self.result, "rows": self._rows(), "bells": self.spec["bells"]})

    def _receive(self) -> None:
        if self.link is None:  # It went while an earlier event of the same round was served.
            return
        try:
            data = self.link.recv(65536)
            messages = self.frames.feed(data)
        except (OSError, FrameError):
            data, messages = b"", []
        for message in messages:
            self._answer(message)
        if not data and self.link is not None:
            self._drop()
            if self.spec["lifeline"]:
                self.taken = True

    def _drop(self) -> None:
        assert self.link is not None
        self.poll.unregister(self.link)
        self.link.close()
        self.link = None

    def _send(self, message: dict[str, Any]) -> None:
        if self.link is not None:
            with contextlib.suppress(OSError):  # A broken connection shows at the next receive.
                self.link.sendall(pack_frame(message))

    def _deliver(self) -> None:
        while self.events:
            event = self.events.popleft()
            if event["event"] == "report":
                self.reports[event["name"]] = event["value"]
            else:
                self.result = event["result"]
            self._send(event)
            if self.result is not None:
                self.on_result()

    def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": message.get("id")}
        call = message.get("call")
        try:
            if call == "fds":
                self._send_descriptors(answer)
                return
            answer["ok"] = _method(call)(self, message)
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer["error"] = f"guest {self.name}: {call}: {error}"
        self._send(answer)

    def _send_descriptors(self, answer: dict[str, Any]) -> None:
        """Give a restarted supervisor the regions' and bells' descriptors, beside the answer's first bytes."""
        assert self.link is not None
        frame = pack_frame(answer | {"ok": len(self.descriptors) - 1})
        socket.send_fds(self.link, [frame], self.descriptors[1:])

    # --- calls -----------------------------------------------------------------------------------------------------

    def stop(self, _message: dict[str, Any]) -> None:
        self.stopping = True
        if self.guest is not None:
            self.guest.pause.end()
            for vcpu in self.guest.vcpus:
                vcpu.stop()

    def share(self, _message: dict[str, Any]) -> dict[str, int]:
        """Share again what the guest's kernel wrote alike with others; the guest stands still meanwhile."""
        if self.guest is None or self.result is not None:
            raise ValueError("its guest does not run")
        return self.guest.share()

    def take(self, _message: dict[str, Any]) -> None:
        if self.result is None:
            raise ValueError("its guest is still running")
        self.taken = True

    def slots(self, _message: dict[str, Any]) -> list[dict[str, Any]]:
        return self._rows()

    def stats(self, _message: dict[str, Any]) -> dict[str, Any]:
        if self.guest is None:
            return {}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        paging = {} if self.ceiling is None else {"paging": self.ceiling.describe()}
        return self.guest.counters | paging | {"cpu_seconds": usage.ru_utime + usage.ru_stime}

    def read(self, message: dict[str, Any]) -> bytes:
        if self.guest is None or not 0 <= message["size"] <= READ_LIMIT:
            raise ValueError(f"size must be 0 to {READ_LIMIT} bytes of a running guest")
        return bytes(self.guest.table.read(message["gpa"], message["size"]))

    def _rows(self) -> list[dict[str, Any]]:
        return [] if self.guest is None else [row.describe() for row in self.guest.table]


Method = Callable[[GuestProcess, dict[str, Any]], Any]
CALLS: dict[str, Method] = {
    "stop": GuestProcess.stop,
    "share": GuestProcess.share,
    "take": GuestProcess.take,
    "slots": GuestProcess.slots,
    "stats": GuestProcess.stats,
    "read": GuestProcess.read,
}
RARE: dict[str, str] = {
    "balloon": "hostd.vmm.ballooning",
    "debug": "hostd.gdb.attach",
    "freeze": "hostd.vmm.freezing",
    "log_dirty": "hostd.vmm.statistics",
    "pageout": "hostd.vmm.pageout",
    "plug": "hostd.vmm.hotplug",
    "plugged": "hostd.vmm.hotplug",
    "read_virtual": "hostd.vmm.inspection",
    "search": "hostd.vmm.inspection",
    "statistics": "hostd.vmm.statistics",
    "unplug": "hostd.vmm.hotplug",
    "write": "hostd.vmm.inspection",
}
"""calls that few guests ever get: each is the function of its name in this module, imported when it is asked for"""


def _method(call: object) -> Method:
    if isinstance(call, str) and call in CALLS:
        return CALLS[call]
    if isinstance(call, str) and call in RARE:
        method: Method = getattr(importlib.import_module(RARE[call]), call)
        return method
    raise ValueError(f"unknown call {call!r}")


def main(spec: dict[str, Any], descriptors: list[int]) -> int:
    """Be the guest that `spec` describes, with `descriptors` [log, image, regions..., bells...]; return the status."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    calls.fence_register()
    if spec["cpu"] is not None:
        os.sched_setaffinity(0, spec["cpu"] if isinstance(spec["cpu"], list) else [spec["cpu"]])
    offer_to_oom_killer()
    process = GuestProcess(spec, descriptors)
    process.listen()
    process.main()
    return 0
