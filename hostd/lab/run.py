"""Run one command in a lab of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hostd.agent import terminal
from hostd.agent.link import AgentError, AgentLink
from hostd.lab.errors import LabError
from hostd.lab.machine import LEAST_MEMORY, LabMachine, machine

DEFAULT_MEMORY = 8 << 30
START_LIMIT = 180.0
"""seconds until the machine answers; it needs less than ten, on a host that has nothing else to do"""
SHELL_LIMITS = 'ulimit -n 1000000 2>/dev/null; exec "$@"'
TIMED_OUT = 124
"""the exit code of timeout(1)"""
IMPATIENCE = 2
"""so many interrupts end the lab, whatever its command does"""
GRACE = 10.0
"""seconds that a command has to end in after a signal that means the end of this process"""


class LabLink(AgentLink):
    """The connection to the lab's agent: there is one socket, and there will be no other."""

    def __init__(self, agent: socket.socket) -> None:
        super().__init__("", "lab")
        self._agent: socket.socket | None = agent

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        agent, self._agent = self._agent, None
        if agent is None:
            raise ConnectionError
        return await asyncio.open_connection(sock=agent.dup())


def run(
    command: Sequence[str],
    *,
    memory: int | None = None,
    cpus: int = 1,
    out: Path | None = None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> int:
    """Run `command` as root in a new lab, in this folder and environment; return its exit code.

    It is joined to this terminal, or these pipes.

    `memory` in bytes (default: half of what is available, 8 GiB at most); `cpus`: more are faster, and not
    to be trusted with long work (docs/lab.md); `out`:
    a folder that really is written; `timeout` in seconds, after which the lab is ended and the code is 124; `verbose`:
    show what the lab's kernel says. Raises LabError, and what fetching its kernel can raise.
    """
    if threading.current_thread() is not threading.main_thread():
        raise LabError("a lab belongs to a terminal and its signals: run it from the main thread")
    if not command:
        raise LabError("there is no command to run; give one behind --")
    if timeout is not None and timeout <= 0:
        raise LabError(f"a command that has {timeout:g} seconds can't even start")
    if out is not None:
        out = out.resolve()
        if out.exists() and not out.is_dir():
            raise LabError(f"{out}: is no folder; --out takes one, or the name of one to make")
        out.mkdir(parents=True, exist_ok=True)
    variables = inside(os.environ if environment is None else environment)
    with _signals_raise(), machine(memory or default_memory(), cpus, out, verbose=verbose) as made:
        return asyncio.run(_run(made, command, variables, timeout))


def default_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return half of the memory that this host has available, in bytes, but no more than is of use."""
    available = int(meminfo.read_text().partition("MemAvailable:")[2].split()[0]) << 10
    return max(LEAST_MEMORY, min(DEFAULT_MEMORY, available // 2) >> 20 << 20)


def inside(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command in the lab: this one, and this Python's folder first among programs.

    So `hostd` and `python` are there what they are here, also where nobody activated the virtual environment.
    """
    folder = str(Path(sys.executable).parent)
    path = environment.get("PATH", os.defpath)
    if sys.prefix != sys.base_prefix or folder not in path.split(":"):
        path = path if path.split(":")[0] == folder else f"{folder}:{path}"
    return {**environment, "PATH": path, "HOSTD_LAB": "1"}


async def _run(made: LabMachine, command: Sequence[str], variables: Mapping[str, str], timeout: float | None) -> int:
    link = LabLink(made.agent)
    ended = asyncio.ensure_future(asyncio.to_thread(made.process.wait))
    attended = asyncio.ensure_future(_attend(link, command, variables))
    try:
        done, _ = await asyncio.wait({ended, attended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if attended in done:
            return attended.result()
        if ended in done:
            raise LabError(f"the lab's machine ended before its command did{_said(made)}")
        print(f"hostd lab: {command[0]}: not done in {timeout:g} seconds; ended", file=sys.stderr)
        return TIMED_OUT
    except AgentError as error:
        if link.up:
            raise LabError(str(error)) from None
        # It may just be ending: then it said why.
        await asyncio.wait({ended}, timeout=1.0)
        raise LabError(f"the lab's machine does not answer{_said(made)}") from None
    finally:
        attended.cancel()
        made.process.kill()
        await ended
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await attended
        await link.close()


def _said(made: LabMachine) -> str:
    words = made.last_words()
    return f"; it said: {words}" if words else ""


async def _attend(link: LabLink, command: Sequence[str], variables: Mapping[str, str]) -> int:
    await link.wait_up(START_LIMIT)
    size = terminal.window()
    remote = await link.exec(
        ["/bin/sh", "-c", SHELL_LIMITS, "lab", *command], env=variables, cwd=os.getcwd(), terminal=size, clean=True
    )
    interrupts = 0

    def passed_on(number: int) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts >= IMPATIENCE:
            raise KeyboardInterrupt
        if number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().call_later(GRACE, _end, number)

    return await terminal.attend(remote, terminal=size is not None, on_signal=passed_on)


def _end(number: int, _frame: object = None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals that end a process end this block as an exception, so that the machine goes with it."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
