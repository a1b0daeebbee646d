"""Background clusters: start one that outlives this process, reach the supervisor of one, or give it a new one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from hostd.control.client import Client
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.errors import ClusterRunningError, NoSuchClusterError, SupervisorError
from hostd.supervisor.processes import Process, alive, identify

if TYPE_CHECKING:
    from hostd.cluster.model import Cluster

ADOPTION_TIMEOUT = 15.0
END_TIMEOUT = 20.0


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
        child.communicate(json.dumps(order).encode())  # It forks the supervisor and ends.
        supervisor = identify(int(answer.readline() or 0))
        try:
            said = json.loads(answer.read() or b'{"error": "the supervisor ended before it said anything"}')
        except BaseException:
            if supervisor is not None:
                os.kill(supervisor["pid"], signal.SIGTERM)
                _await_end(supervisor)
            raise
    if "error" in said:
        _await_end(supervisor)
        kind = ClusterRunningError if said.get("running") else SupervisorError
        raise kind(said["error"])


def _await_end(supervisor: Process | None) -> None:
    deadline = time.monotonic() + END_TIMEOUT
    while alive(supervisor) and time.monotonic() < deadline:
        time.sleep(0.01)
