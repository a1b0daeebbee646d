"""The guests of one cluster: started in order through the warm parent, watched, restarted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from hostd.cluster.plan import Plan
from hostd.control.framing import FrameReader, Message
from hostd.supervisor.agents import Agents
from hostd.supervisor.boots import Boot
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.figures import SIZED_GUESTS, Figures
from hostd.supervisor.guest_run import GuestRun, Result, death, failure
from hostd.supervisor.link import GuestLink, WarmLink
from hostd.supervisor.memory_limits import MemoryLimits
from hostd.supervisor.networks import Networks
from hostd.supervisor.regions import Regions
from hostd.supervisor.spec import guest_spec

STARTS_AT_ONCE = 48
"""guests asked for that haven't said hello"""
HELLO_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
SHUTDOWN_TIMEOUT = 10.0
"""seconds that a Linux guest has to end in good order when it is stopped"""
CONNECT_DELAY = 0.003
EXIT_GRACE = 0.5
"""between the end of a guest's connection and the warm parent's word on how its process ended"""

FORKED = "forked"
ENDED = "ended"


class Fleet:
    """All guests of `plan`. `revive` is called when a warm parent is needed and there is none."""

    def __init__(
        self,
        plan: Plan,
        boots: dict[str, Boot],
        directory: ClusterDirectory,
        regions: Regions,
        networks: Networks,
        revive: Callable[[], WarmLink],
        *,
        foreground: bool,
    ) -> None:
        self.runs = {name: GuestRun(guest) for name, guest in plan.guests.items()}
        self.figures = Figures(len(self.runs))
        self.foreground = foreground
        self.failed_start: str | None = None
        """the sentence of the first guest that could not be started"""
        self.warm: WarmLink | None = None
        self.agents = Agents(directory)
        self.limits = MemoryLimits(plan)
        self._plan = plan
        self._boots = boots
        self._files: dict[tuple[str, str], int] = {}
        self._directory = directory
        self._regions = regions
        self._networks = networks
        self._revive = revive
        self._slots = asyncio.Semaphore(STARTS_AT_ONCE)
        self._starting: set[str] = set()
        self._alive = 0
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- starting ----------------------------------------------------------------------------------------------

    def start(self, runs: Iterable[GuestRun] | None = None) -> None:
        """Begin to start those of `runs` (default: all) that wait; `wait_started` tells when they are."""
        self._spawn(self._start_all(list(self.runs.values() if runs is None else runs)))

    async def _start_all(self, runs: Iterable[GuestRun]) -> None:
        for run in runs:
            if run.state != "waiting":
                continue
            if run.plan.after:
                self._spawn(self._start_after(run))
            else:
                await self._start_one(run)

    async def _start_after(self, run: GuestRun) -> None:
        for name in run.plan.after:
            other = self.runs[name]
            await other.ready.wait()
            if other.failed_start or other.stopping:
                self._end(run, failure(run.name, f"not started: guest {name}, which it starts after, never ran"))
                return
        await self._start_one(run)

    async def _start_one(self, run: GuestRun) -> None:
        await self._slots.acquire()
        if run.stopping or self._closed:
            self._slots.release()
            return
        self._starting.add(run.name)
        self.launch(run)

    def launch(self, run: GuestRun) -> None:
        """Ask the warm parent for the guest's process."""
        run.state, run.requested, run.result, run.failed_start = "starting", time.monotonic(), None, False
        run.killed = False
        if run.restarts == 0:
            self.figures.requested(run.requested)
        try:
            if self.warm is None:
                self.warm = self._revive()
            log_file = self._directory.log(run.name)
            handed: list[int] = []
            log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                boot, *others = [self._file(*file) for file in self._boots[run.plan.group.name].files]
                shared = self._regions.descriptors(run.plan)
                handed = self._handed(run)
                self.warm.send({"start": self._spec(run)}, [log, boot, *shared, *handed, *others])
                run.awaited = True
            finally:
                os.close(log)
                for descriptor in handed:
                    os.close(descriptor)
        except OSError as error:
            self._never_ran(run, failure(run.name, f"cannot be started: {error.strerror or error}"))
            return
        asyncio.get_running_loop().call_later(HELLO_TIMEOUT, self._expect_hello, run, run.requested)

    def _spec(self, run: GuestRun) -> dict[str, Any]:
        return guest_spec(
            run.plan,
            self._regions,
            self._boots[run.plan.group.name],
            plan=self._plan,
            directory=self._directory.path,
            foreground=self.foreground,
            memory_group=self.limits.paths.get(run.name),
        )

    def _handed(self, run: GuestRun) -> list[int]:
        """Return the descriptors that only this start of the guest gets: a Linux guest's archive."""
        if run.plan.group.linux is None:
            return []
        from hostd.supervisor.handover import archive

        root = self._boots[run.plan.group.name].description["root"]
        return [archive(run.plan, self._regions, self._plan.cluster.name, root, self._plan.guests)]

    def _identity(self, run: GuestRun, *, fresh: bool) -> Callable[[], bytes] | None:
        """Return what a Linux guest from a template is to be told of itself."""
        if run.plan.group.linux is None or run.plan.group.template is None:
            return None
        from hostd.supervisor.handover import identity

        return lambda: identity(run.plan, self._regions, self._plan.cluster.name, self._plan.guests, fresh=fresh)

    def _file(self, path: str, access: str) -> int:
        if (path, access) not in self._files:
            flags = os.O_RDWR if access == "rw" else os.O_RDONLY
            self._files[path, access] = os.open(path, flags | os.O_CLOEXEC)
        return self._files[path, access]

    def _expect_hello(self, run: GuestRun, requested: float) -> None:
        if run.state == "starting" and run.requested == requested and not self._closed:
            self._never_ran(run, failure(run.name, f"its process said nothing in {HELLO_TIMEOUT:.0f} s"))
            self.kill(run)

    def _never_ran(self, run: GuestRun, result: Result) -> None:
        run.failed_start = True
        if self.failed_start is None and not run.stopping:
            self.failed_start = result["message"]
        self._end(run, result)
        if run.pid is None:
            self._after_end(run)

    # --- what the warm parent says -----------------------------------------------------------------------------

    def on_warm(self, message: Message) -> None:
        """Take a message of the warm parent."""
        if "started" in message:
            run = self.runs[message["started"]]
            run.pid, run.awaited = message["pid"], False
            self._alive += 1
            self._note({"event": FORKED, "name": run.name, "pid": run.pid, **self._past(run)})
            self._connect(run, CONNECT_DELAY)
        elif "failed" in message:
            run = self.runs[message["failed"]]
            run.awaited = False
            self._never_ran(run, failure(run.name, str(message["error"])))
        elif "exited" in message:
            for run in self.runs.values():  # A process that died early has no name yet.
                if run.pid == message["pid"]:
                    self._gone(run, message["status"])
                    break

    def on_warm_end(self) -> None:
        """The warm parent died: its guests go on, their connections tell when they end."""
        self.warm = None
        for run in self.runs.values():
            run.awaited = False
            if run.state == "starting" and run.pid is None:
                self._never_ran(run, failure(run.name, "the process that starts guests died"))

    def _connect(self, run: GuestRun, delay: float) -> None:
        if run.pid is None or run.link is not None:
            return
        try:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._never_ran(run, failure(run.name, f"its process can't be reached: {error.strerror}; see hostd doctor"))
            self.kill(run)
            return
        try:
            link.connect(os.fspath(self._directory.socket(run.name)))
        except OSError:  # It has not come so far yet; if it never does, its end or the time limit tells.
            link.close()
            asyncio.get_running_loop().call_later(delay, self._connect, run, min(delay * 1.5, 0.1))
            return
        self.attach(run, link)

    # --- what a guest says -------------------------------------------------------------------------------------

    def attach(self, run: GuestRun, link: socket.socket, frames: FrameReader | None = None) -> None:
        """Use `link` as the connection to the guest; `frames` has what was read from it before."""
        run.link = GuestLink(link, lambda message: self.on_guest(run, message), lambda: self._lost(run), frames)
        # Not before it has come so far: until then its process is the warm parent's to watch.
        if run.stopping and run.state == "starting":
            self.kill(run)

    def on_guest(self, run: GuestRun, message: Message) -> None:
        """Take a message of a guest process."""
        if "hello" in message:
            self._hello(run, message)
        elif message.get("event") == "report":
            run.reports[message["name"]] = message["value"]
        elif message.get("event") == "result":
            self._result(run, message["result"])

    def _hello(self, run: GuestRun, message: Message) -> None:
        run.reports.update(message["reports"])
        run.rows = message["rows"]
        if message["result"] is None:
            # Of a guest that ran before this supervisor, that generation goes on.
            self.agents.begin(run, self._identity(run, fresh=run.state == "starting"))
        if run.state == "starting" and message["state"] != "starting":
            now = time.monotonic()
            run.state, run.running_since = "running", now
            run.start_ns = round((now - run.requested) * 1e9)
            if run.restarts == 0 and self.figures.running(now, self._alive):
                self._size_some()
            run.ready.set()
            self._release(run)
            self._changed()
        if message["result"] is not None:
            self._result(run, message["result"])

    def _size_some(self) -> None:
        running = [run.pid for run in self.runs.values() if run.state == "running" and run.pid is not None]
        for pid in running[:: max(1, len(running) // SIZED_GUESTS)][:SIZED_GUESTS]:
            self.figures.size(pid)

    def _result(self, run: GuestRun, result: Result) -> None:
        if run.state == "starting":
            self._never_ran(run, result)
        else:
            self._end(run, self.agents.amend(run, result))
        if run.link is not None:
            run.link.send({"id": 0, "call": "take"})

    def _end(self, run: GuestRun, result: Result) -> None:
        """Keep how a guest ended, first of all for those who would wait for it."""
        if run.result is not None:
            return
        run.result, run.state = result, "ended"
        self._regions.mark_gone(run.plan)
        self._note({"event": ENDED, "name": run.name, "result": result, "reports": run.reports, **self._past(run)})
        run.ready.set()
        self._release(run)
        self._changed()

    def _past(self, run: GuestRun) -> dict[str, Any]:
        return {"restarts": run.restarts, "start_ns": run.start_ns, "stopping": run.stopping}

    def _release(self, run: GuestRun) -> None:
        if run.name in self._starting:
            self._starting.remove(run.name)
            self._slots.release()

    # --- the end of a process ----------------------------------------------------------------------------------

    def _lost(self, run: GuestRun) -> None:
        """The connection ended: the process did, or is about to."""
        pid = run.pid
        if self.warm is None:
            self._gone(run, None)
        elif pid is not None and not self._closed:
            asyncio.get_running_loop().call_later(EXIT_GRACE, self._presume_gone, run, pid)

    def _presume_gone(self, run: GuestRun, pid: int) -> None:
        if run.pid == pid and not self._closed:
            self.kill(run)
            self._gone(run, None)

    def _gone(self, run: GuestRun, status: int | None) -> None:
        self.agents.end(run)
        if run.link is not None:
            run.link.drain()
            run.link.close()
            run.link = None
        if run.pid is not None:
            run.pid = None
            self._alive -= 1
        if run.result is None:
            if run.state == "starting":
                self._never_ran(run, self._death(run, status))
                return
            self._end(run, self._death(run, status))
        self._after_end(run)

    def _death(self, run: GuestRun, status: int | None) -> Result:
        blame = self.limits.blame(run.name, status)
        if blame is None or run.killed:
            return death(run.name, status)
        return failure(run.name, blame, outcome="killed", code=128 + signal.SIGKILL)

    def _after_end(self, run: GuestRun) -> None:
        with contextlib.suppress(OSError):
            self._directory.socket(run.name).unlink(missing_ok=True)
        delay = None if self._closed or run.failed_start else run.restart_delay()
        if delay is not None:
            run.state = "restarting"
            asyncio.get_running_loop().call_later(delay, self._restart, run)
        self._changed()

    def _restart(self, run: GuestRun) -> None:
        if run.state != "restarting" or self._closed:
            return
        run.restarts += 1
        self._regions.mark_fresh(run.plan)
        if run.plan.ports:
            self._spawn(self._relaunch(run))
        else:
            self.launch(run)

    async def _relaunch(self, run: GuestRun) -> None:
        await self._networks.renew(run.plan)
        if run.state == "restarting" and not self._closed:
            self.launch(run)

    async def start_again(self, runs: Iterable[GuestRun]) -> list[GuestRun]:
        """Start those of `runs` that have ended, or would be restarted; return them when they run or have ended again.

        Whether each could be started is in its `failed_start`.
        """
        asked = []
        for run in runs:
            if run.state == "ended":
                await self.wait_finished([run])  # Its process may still be on its way out.
            elif run.state != "restarting":
                continue
            await self._slots.acquire()
            if self._closed or run.state not in ("ended", "restarting"):
                self._slots.release()
                continue
            self._starting.add(run.name)
            run.state, run.stopping, run.crashes = "restarting", False, 0
            self._restart(run)
            asked.append((run, run.restarts))
        for run, number in asked:
            while run.restarts == number and run.state in ("restarting", "starting"):
                await self._change.wait()
        return [run for run, _ in asked]

    # --- stopping ----------------------------------------------------------------------------------------------

    def kill(self, run: GuestRun) -> None:
        """Kill the guest's process."""
        if run.pid is not None:
            run.killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGKILL)

    async def stop(self, runs: Iterable[GuestRun], *, grace: float = SHUTDOWN_TIMEOUT) -> None:
        """Stop `runs` for good: Linux guests in good order in `grace` seconds if their agents answer, then by force.

        Those that don't end by that either are killed.
        """
        runs = list(runs)
        await self._shut_down(runs, grace)
        for run in runs:
            run.stopping = True
            if run.state == "waiting":
                self._end(run, failure(run.name, "stopped before it was started", outcome="killed", code=137))
            elif run.state == "restarting":
                run.state = "ended"
            elif run.state == "starting" and run.link is not None:
                self.kill(run)
            elif run.link is not None and run.result is None:
                run.link.send({"id": 0, "call": "stop"})
        self._changed()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self.wait_finished(runs)
        except TimeoutError:
            for run in runs:
                self.kill(run)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self.wait_finished(runs)

    async def _shut_down(self, runs: list[GuestRun], grace: float) -> None:
        """Give Linux guests that run the time to end in good order."""
        running = [run for run in runs if run.link is not None and run.result is None]
        for run in running:
            run.stopping = True
        if grace <= 0:
            return
        # Half of it is the processes', the rest the kernel's to write what it has not written.
        asked = await asyncio.gather(*(self.agents.shut_down(run, grace / 2) for run in running))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.wait_finished([run for run, done in zip(running, asked, strict=True) if done])

    async def wait_started(self, runs: Iterable[GuestRun] | None = None) -> None:
        """Wait until every one of `runs` (default: all) runs or has ended, or one could not be started."""
        for run in self.runs.values() if runs is None else runs:
            while not run.ready.is_set() and self.failed_start is None:
                await self._change.wait()

    async def wait_finished(self, runs: Iterable[GuestRun] | None = None) -> None:
        """Wait until `runs` (default: all) have ended for good."""
        for run in self.runs.values() if runs is None else runs:
            while not run.finished:
                await self._change.wait()

    async def close(self) -> None:
        """Kill what still runs, wait for it, and let go of everything; no guest is restarted any more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for run in self.runs.values():
            run.stopping = True
            if run.link is not None or run.state != "starting":
                self.kill(run)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT):
                for run in self.runs.values():
                    while run.pid is not None or run.awaited:
                        await self._change.wait()
        await self.agents.close()
        for run in self.runs.values():
            if run.link is not None:
                run.link.close()
                run.link = None
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self.figures.close()

    # --- small things ------------------------------------------------------------------------------------------

    def adopt(self, run: GuestRun, pid: int) -> None:
        """Take a guest that another supervisor started."""
        run.pid, run.state, run.running_since = pid, "running", time.monotonic()
        self._alive += 1
        run.ready.set()

    def settle(self, run: GuestRun) -> None:
        """Decide whether a guest that ended under another supervisor is to be started again."""
        self._after_end(run)

    def bury(self, run: GuestRun) -> None:
        """Take note that a guest of another supervisor has died meanwhile."""
        self._gone(run, None)

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _note(self, entry: dict[str, Any]) -> None:
        if not self.foreground:
            with contextlib.suppress(OSError):  # A full disk costs history, not guests.
                self._directory.note(entry)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
