"""The supervisor of a background cluster as a process of its own, which outlives the command that started it.

`start` and `attach` are called by commands; `python -m hostd.supervisor.detached FD` is the process. It says on the
descriptor FD,
It says on the descriptor FD, in one line of JSON, whether the cluster is up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import shm
from guestlib import BuildError
from hostd.boot.elf import Image
from hostd.boot.errors import ImageError
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.file import from_tables
from hostd.cluster.model import Cluster
from hostd.cluster.plan import plan as make_plan
from hostd.control.client import Client, ControlError
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.errors import ClusterRunningError, NoSuchClusterError, SupervisorError, sentence
from hostd.supervisor.preflight import prepare
from hostd.supervisor.supervisor import Supervisor

ADOPTION_TIMEOUT = 15.0


# --- the calling side ----------------------------------------------------------------------------------------------


def start(cluster: Cluster) -> None:
    """Bring `cluster` up in the background; return when its guests have been started.

    Raises SupervisorError when it could not be; then nothing of it is left.
    """
    order = {"path": str(cluster.path), "tables": cluster.tables, "overrides": list(cluster.overrides)}
    _launch({"start": order})


def attach(name: str) -> Client:
    """Return a connection to the supervisor of the cluster `name`; if that died, a new one takes over its guests first.

    Raises NoSuchClusterError, SupervisorError or ControlError.
    """
    directory = ClusterDirectory(name)
    deadline = time.monotonic() + ADOPTION_TIMEOUT
    while True:
        try:
            return Client(directory.control)
        except OSError:
            state = directory.state()
        if state is None:
            raise NoSuchClusterError(f"no cluster {name!r} runs; `hostd ps` lists those that do")
        if state["foreground"]:
            raise NoSuchClusterError(f"cluster {name!r} was a foreground run that crashed; run it again to clean up")
        try:
            _launch({"adopt": name})
        except ClusterRunningError:  # Another command was faster; its supervisor will listen in a moment.
            if time.monotonic() > deadline:
                raise SupervisorError(f"cluster {name!r}: its supervisor doesn't answer") from None
            time.sleep(0.05)


def _launch(order: dict[str, Any]) -> None:
    ready, ready_end = os.pipe()
    with os.fdopen(ready, "rb") as answer:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "hostd.supervisor.detached", str(ready_end)],
                pass_fds=[ready_end],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(ready_end)
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(order).encode())
            child.stdin.close()
            said = json.loads(answer.read() or b'{"error": "the supervisor ended before it said anything"}')
        except BaseException:
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise
    if "error" in said:
        child.wait()
        kind = ClusterRunningError if said.get("running") else SupervisorError
        raise kind(said["error"])
    # It is not this process's to wait for.
    child.returncode = 0


# --- the process ---------------------------------------------------------------------------------------------------


def main() -> int:
    """Be the supervisor that the order on standard input asks for."""
    ready = int(sys.argv[1])
    os.set_inheritable(ready, False)
    order = json.load(sys.stdin)
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
    plan, images = prepare(from_tables(Path(order["path"]), order["tables"], order["overrides"]))
    return Supervisor(plan, images, foreground=False)


def _adopted(name: str) -> tuple[Supervisor, dict[str, Any]]:
    directory = ClusterDirectory(name)
    state = directory.attach()
    cluster = from_tables(Path(state["file"]), state["tables"], state["overrides"])
    images = {guest: Image.of(image) for guest, image in state["images"].items()}
    return Supervisor(make_plan(cluster), images, foreground=False, directory=directory), state


if __name__ == "__main__":
    sys.exit(main())
