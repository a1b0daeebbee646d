"""The process of a background cluster's supervisor: `python -m hostd.supervisor.detached FD` (see background.py).

It reads from standard input what to start or adopt, and says on the descriptor FD its process id, then, as JSON,
whether the cluster is up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import shm
from guestlib import BuildError
from hostd.boot.errors import ImageError
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.file import from_tables
from hostd.cluster.plan import plan as make_plan
from hostd.control.client import ControlError
from hostd.supervisor.boots import Boot
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.errors import ClusterRunningError, SupervisorError, sentence
from hostd.supervisor.preflight import check_kvm, prepare
from hostd.supervisor.supervisor import Supervisor


def main() -> int:
    """Be the supervisor that the order on standard input asks for."""
    ready = int(sys.argv[1])
    os.set_inheritable(ready, False)
    order = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # So that init reaps the supervisor, not whoever asked for it.
    os.write(ready, b"%d\n" % os.getpid())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(_supervise(order, ready))
    except (SupervisorError, ClusterFileError, ImageError, BuildError, shm.ShmError, ControlError, OSError) as error:
        _say(ready, {"error": sentence(error), "running": isinstance(error, ClusterRunningError)})
        return 1
    except BaseException as error:
        _say(ready, {"error": f"the supervisor failed: {error!r}"})
        raise
    return 0


def _say(ready: int, message: dict[str, Any]) -> None:
    try:
        os.write(ready, json.dumps(message).encode())
        os.close(ready)
    except OSError:  # Said before, or nobody listens any more.
        pass


async def _supervise(order: dict[str, Any], ready: int) -> None:
    supervisor, state = _adopted(order["adopt"]) if "adopt" in order else (_new(order["start"]), None)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.finish.set)
    end = asyncio.ensure_future(supervisor.finish.wait())
    if state is not None:
        await supervisor.adopt(state)
    try:
        if state is None:
            await supervisor.start()
            started = asyncio.ensure_future(supervisor.fleet.wait_started())
            await asyncio.wait([started, end], return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            if supervisor.fleet.failed_start is not None:
                raise SupervisorError(supervisor.fleet.failed_start)
        _say(ready, {"ok": True})
        await end
        await supervisor.fleet.stop(supervisor.fleet.runs.values())
    finally:
        end.cancel()
        await supervisor.close()


def _new(order: dict[str, Any]) -> Supervisor:
    check_kvm()
    plan, boots = prepare(from_tables(Path(order["path"]), order["tables"], order["overrides"]))
    return Supervisor(plan, boots, foreground=False)


def _adopted(name: str) -> tuple[Supervisor, dict[str, Any]]:
    directory = ClusterDirectory(name)
    state = directory.attach()
    cluster = from_tables(Path(state["file"]), state["tables"], state["overrides"])
    boots = {guest: Boot.of(boot) for guest, boot in state["boots"].items()}
    return Supervisor(make_plan(cluster), boots, foreground=False, directory=directory), state


if __name__ == "__main__":
    sys.exit(main())
