"""Run one command in a lab of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hostd.agent import terminal
from hostd.agent.link import AgentError, AgentLink
from hostd.lab.errors import LabError
from hostd.lab.machine import LabMachine, machine

MEMORY = 4 << 30
START_LIMIT = 120.0
SHELL_LIMITS = 'ulimit -n 1000000 2>/dev/null; exec "$@"'
TIMED_OUT = 124
"""the exit code of timeout(1)"""
IMPATIENCE = 2
"""so many interrupts end the lab, whatever its command does"""


def run(
    command: Sequence[str],
    *,
    memory: int = MEMORY,
    cpus: int | None = None,
    out: Path | None = None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `command` as root in a new lab, in this folder and environment; return its exit code.

    It is joined to this terminal, or these pipes.

    `memory` in bytes; `cpus`: as many as this host may use; `out`: a folder that really is written; `timeout` in
    seconds, after which the lab is ended and the code is 124. Raises LabError, and what fetching its kernel can raise.
    """
    if not command:
        raise LabError("there is no command to run; give one behind --")
    if out is not None:
        out = out.resolve()
        out.mkdir(parents=True, exist_ok=True)
    variables = inside(os.environ if environment is None else environment)
    with _signals_raise(), machine(memory, cpus or len(os.sched_getaffinity(0)), out) as made:
        return asyncio.run(_run(made, command, variables, timeout))


def inside(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command in the lab: this one, and this Python's folder first among programs."""
    folder = str(Path(sys.executable).parent)
    path = environment.get("PATH", os.defpath)
    return {**environment, "PATH": path if path.startswith(folder) else f"{folder}:{path}", "HOSTD_LAB": "1"}


async def _run(made: LabMachine, command: Sequence[str], variables: Mapping[str, str], timeout: float | None) -> int:
    link = AgentLink(made.agent, "lab")
    ended = asyncio.ensure_future(asyncio.to_thread(made.process.wait))
    attended = asyncio.ensure_future(_attend(link, command, variables))
    try:
        done, _ = await asyncio.wait({ended, attended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if attended in done:
            return attended.result()
        if ended in done:
            raise LabError(f"the lab's machine ended before its command did: {made.last_words()}")
        print(f"hostd lab: {command[0]}: not done in {timeout:g} seconds; ended", file=sys.stderr)
        return TIMED_OUT
    except AgentError as error:
        words = f" ({made.last_words()})" if not link.up else ""
        raise LabError(f"{error}{words}") from None
    finally:
        attended.cancel()
        made.process.kill()
        await ended
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await attended
        await link.close()


async def _attend(link: AgentLink, command: Sequence[str], variables: Mapping[str, str]) -> int:
    await link.wait_up(START_LIMIT)
    size = terminal.window()
    remote = await link.exec(
        ["/bin/sh", "-c", SHELL_LIMITS, "lab", *command], env=variables, cwd=os.getcwd(), terminal=size, clean=True
    )
    interrupts = 0

    def count(number: int) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts >= IMPATIENCE:
            raise KeyboardInterrupt

    return await terminal.attend(remote, terminal=size is not None, on_signal=count)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals that end a process end this block as an exception, so that the machine goes with it."""

    def interrupt(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
