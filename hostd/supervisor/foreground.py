"""Run a cluster in the foreground: from its file to the result, with nothing left whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hostd.bench import baselines
from hostd.cluster.model import Cluster
from hostd.cluster.plan import Plan
from hostd.supervisor.boots import Boot
from hostd.supervisor.errors import SupervisorError
from hostd.supervisor.preflight import check_kvm, prepare
from hostd.supervisor.supervisor import Supervisor

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECK_TIMEOUT = 300.0

Watch = Callable[[Supervisor], Awaitable[None]]


class InterruptedRunError(SupervisorError):
    """A run that a signal or `hostd down` ended before its guests did."""

    def __init__(self, cluster: str, number: int | None) -> None:
        self.signal = number
        cause = signal.Signals(number).name if number else "hostd down"
        super().__init__(f"cluster {cluster}: ended by {cause} before its guests were done")


def run(cluster: Cluster, watch: Watch | None = None) -> dict[str, Any]:
    """Run `cluster` to its end; return the run's JSON. `watch` may look on meanwhile.

    Raises ClusterFileError, ImageError, BuildError, SupervisorError, shm.ShmError or OSError (KvmError among them)
    when it
    when it can't be started, InterruptedRunError when it was ended early.
    """
    with signals_raise():
        check_kvm()
        plan, boots = prepare(cluster)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_run(plan, boots, watch))
    # The caller's thread has a loop of its own (a notebook's, say): this run gets a thread for its loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _run(plan, boots, watch)).result()


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Let signals that end a process end this block as an exception, so that what it began is cleaned up."""

    def interrupt(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _run(plan: Plan, boots: dict[str, Boot], watch: Watch | None) -> dict[str, Any]:
    before = await _baselines(plan)
    supervisor = Supervisor(plan, boots, foreground=True)
    received: list[int] = []
    _catch_signals(supervisor, received)
    watcher: asyncio.Task[None] | None = None
    try:
        await supervisor.start()
        if watch is not None:
            watcher = asyncio.ensure_future(_as_task(watch, supervisor))
        await _until(supervisor, supervisor.fleet.wait_started())
        if supervisor.fleet.failed_start is not None:
            raise SupervisorError(supervisor.fleet.failed_start)
        await _until(supervisor, supervisor.fleet.wait_finished())
        if supervisor.finish.is_set():
            raise InterruptedRunError(plan.cluster.name, received[0] if received else None)
        return await _conclude(supervisor, before)
    finally:
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        await supervisor.close()


async def _as_task(watch: Watch, supervisor: Supervisor) -> None:
    await watch(supervisor)


def _catch_signals(supervisor: Supervisor, received: list[int]) -> None:
    def note(number: int) -> None:
        received.append(number)
        supervisor.finish.set()

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, note, number)


async def _until(supervisor: Supervisor, work: Awaitable[None]) -> None:
    """Wait for `work`, or until somebody asks for the end."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(supervisor.finish.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _baselines(plan: Plan) -> dict[str, float]:
    """Measure the file's baselines on the guests' processors. Raises SupervisorError."""
    if not plan.cluster.baselines:
        return {}
    try:
        return await asyncio.to_thread(baselines.run, plan.cluster.baselines, _processors(plan))
    except baselines.BaselineError as error:
        raise SupervisorError(f"baselines: {error}") from None


async def _conclude(supervisor: Supervisor, before: dict[str, float]) -> dict[str, Any]:
    """Measure the baselines once more and let the file's check judge.

    A figure is the mean of before and after the guests' run, as the host's speed may change meanwhile.
    """
    cluster, result = supervisor.plan.cluster, supervisor.result()
    after = await _baselines(supervisor.plan)
    result["baseline"] = {name: (value + after[name]) / 2 for name, value in before.items()}
    if cluster.check and result["ok"]:
        result["check"] = await asyncio.to_thread(_check, cluster, result)
        if not result["check"]["ok"]:
            result |= {"ok": False, "exit_code": 1}
    return result


def _processors(plan: Plan) -> list[int]:
    used = [cpu for guest in plan.guests.values() for cpu in guest.group.cpus]
    return list(dict.fromkeys([*used, *sorted(os.sched_getaffinity(0))]))[:2]


def _check(cluster: Cluster, result: dict[str, Any]) -> dict[str, Any]:
    program, *arguments = cluster.check
    if program in ("python", "python3"):
        program = sys.executable
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=cluster.path.parent,
            input=json.dumps(result),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"ok": False, "sentence": f"check.command: {error}"}
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        last = (done.stderr or done.stdout).strip().splitlines()
        said = {"sentence": last[-1] if last else f"ended with status {done.returncode}"}
    return {**said, "ok": done.returncode == 0}
