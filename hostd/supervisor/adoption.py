"""Find the guests of a supervisor that died, and what they share, from what they hold themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from hostd.control.framing import FrameError, FrameReader, Message, pack_frame
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.fleet import ENDED, FORKED, Fleet
from hostd.supervisor.processes import Process, alive
from hostd.supervisor.regions import is_writable
from hostd.vmm import warm

ANSWER_TIMEOUT = 5.0
RETRY = 0.02
CHILDREN_LIMIT = 1 << 20
DESCRIPTOR_LIMIT = 253  # SCM_MAX_FD


@dataclass
class Survivor:
    """A guest process that still runs, and the connection to it."""

    name: str
    link: socket.socket
    hello: Message
    frames: FrameReader
    untold: list[Message] = field(default_factory=list)
    """what it said while something else was asked"""


def meet_warm(directory: ClusterDirectory, process: Process | None) -> tuple[socket.socket | None, dict[str, int]]:
    """Return a connection to the warm parent `process`, and its children; (None, {}) when there is none any more."""
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while alive(process) and time.monotonic() < deadline:
        try:
            link = warm.connect(str(directory.path))
        except OSError:  # It has yet to notice that its supervisor died.
            time.sleep(RETRY)
            continue
        link.settimeout(ANSWER_TIMEOUT)
        try:
            return link, msgpack.unpackb(link.recv(CHILDREN_LIMIT))["children"]
        except (OSError, ValueError, KeyError):
            link.close()
    return None, {}


def survivors(directory: ClusterDirectory, names: Iterable[str], children: Container[str]) -> dict[str, Survivor]:
    """Return those of the guests `names` that still run, by name; those of `children` may have yet to listen."""
    found = {}
    deadline = time.monotonic() + ANSWER_TIMEOUT
    for name in names:
        survivor = _survivor(directory, name)
        while survivor is None and name in children and time.monotonic() < deadline:
            time.sleep(RETRY)
            survivor = _survivor(directory, name)
        if survivor is not None:
            found[name] = survivor
    return found


def _survivor(directory: ClusterDirectory, name: str) -> Survivor | None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(ANSWER_TIMEOUT)
    frames = FrameReader()
    messages: list[Message] = []
    try:
        link.connect(os.fspath(directory.socket(name)))
        while not messages:
            messages = frames.feed(_received(link))
    except (OSError, FrameError):
        link.close()
        return None
    return Survivor(name, link, messages[0], frames, messages[1:])


def _received(link: socket.socket) -> bytes:
    data = link.recv(65536)
    if not data:
        raise ConnectionResetError("the guest process closed the connection")
    return data


def descriptors(found: dict[str, Survivor], state: dict[str, Any]) -> dict[str, tuple[int, dict[int, int]]]:
    """Return, by region, its memory and its bells by number, as far as the guests have them.

    `state["bells"]` says what each guest was given: {"regions": [name...], "bells": [[region, number]...]}.
    """
    memories: dict[str, int] = {}
    bells: dict[tuple[str, int], int] = {}
    for name, survivor in found.items():
        given = state["bells"].get(name, {"regions": [], "bells": []})
        wanted = [tuple(bell) for bell in given["bells"]]
        whole = {region for region, descriptor in memories.items() if is_writable(descriptor)}
        if set(given["regions"]) <= whole and set(wanted) <= set(bells):
            continue
        with contextlib.suppress(OSError, FrameError):
            held = _ask_descriptors(survivor)
            for region in given["regions"]:
                if region in memories and not is_writable(memories[region]):
                    os.close(memories.pop(region))
                _keep(memories, region, held)
            for bell in wanted:
                _keep(bells, bell, held)
            for descriptor in held:
                os.close(descriptor)
    return {
        region: (memory, {number: bell for (owner, number), bell in bells.items() if owner == region})
        for region, memory in memories.items()
    }


def _keep(kept: dict[Any, int], key: object, held: list[int]) -> None:
    if held:
        descriptor = held.pop(0)
        if kept.setdefault(key, descriptor) != descriptor:
            os.close(descriptor)


def _ask_descriptors(survivor: Survivor) -> list[int]:
    survivor.link.sendall(pack_frame({"id": -1, "call": "fds"}))
    held: list[int] = []
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while time.monotonic() < deadline:
        data, received, _flags, _address = socket.recv_fds(survivor.link, 65536, DESCRIPTOR_LIMIT)
        held += received
        if not data:
            break
        for message in survivor.frames.feed(data):
            if message.get("id") == -1:
                return held
            survivor.untold.append(message)
    for descriptor in held:
        os.close(descriptor)
    raise TimeoutError(f"guest {survivor.name} did not give its descriptors")


def restore(fleet: Fleet, found: dict[str, Survivor], journal: Iterable[dict[str, Any]]) -> None:
    """Give `fleet` the guests as they were: those of the journal, those that run."""
    for entry in journal:
        run = fleet.runs.get(entry.get("name", ""))
        if run is None:
            continue
        run.stopping = entry.get("stopping", run.stopping)
        run.restarts, run.start_ns = entry.get("restarts", run.restarts), entry.get("start_ns", run.start_ns)
        if entry["event"] == FORKED:
            run.pid, run.state, run.result = entry["pid"], "running", None
        elif entry["event"] == ENDED:
            run.state, run.result, run.reports = "ended", entry["result"], entry["reports"]
    for run in fleet.runs.values():
        run.pid = None
        survivor = found.get(run.name)
        if survivor is not None:
            survivor.link.setblocking(False)
            run.result = None
            fleet.adopt(run, survivor.hello["pid"])
            fleet.attach(run, survivor.link, survivor.frames)
            for message in (survivor.hello, *survivor.untold):
                fleet.on_guest(run, message)
        elif run.state == "running":
            fleet.bury(run)
        elif run.state == "ended":
            run.ready.set()
            fleet.settle(run)


def end_strays(fleet: Fleet, children: dict[str, int]) -> None:
    """Kill the processes that the warm parent has and that have not shown themselves as guests."""
    for name, pid in children.items():
        run = fleet.runs.get(name)
        if run is None or run.pid != pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
