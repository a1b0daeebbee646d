"""hostd exec"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from hostd.cli.command import print_json

if TYPE_CHECKING:
    from hostd.control.client import Client

EXAMPLES = (
    "hostd exec pair/a -- uname -r",
    "hostd exec a",
    "tar -c src | hostd exec --cwd /root a -- tar -x",
    "hostd exec -e LEVEL=3 a -- sh -c 'echo $LEVEL; exit 7'",
)
NOT_DONE, CANNOT_RUN, NOT_FOUND = 125, 126, 127
"""exit codes that are hostd's own: nothing ran, or it is not known how it ended; no program; no such program"""
WAIT = 30.0
SHELL = ("/bin/sh", "-i")
IMPATIENCE = 3
"""Ctrl-C so often ends hostd itself"""


def configure(parser: argparse.ArgumentParser) -> None:
    tty = parser.add_mutually_exclusive_group()
    tty.add_argument("-t", "--tty", action="store_true", default=None, help="give the command a terminal")
    tty.add_argument(
        "-T", "--no-tty", action="store_false", dest="tty", help="give it pipes (default: what hostd itself has)"
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument("-w", "--cwd", default="", metavar="DIR", help="where the command starts (default: /)")
    parser.add_argument("-n", "--no-stdin", action="store_true", help="give it nothing to read")
    parser.add_argument(
        "--wait", type=float, default=WAIT, metavar="SECONDS", help="for a guest that still boots (default: 30)"
    )
    parser.add_argument("target", metavar="TARGET", help="CLUSTER/GUEST or GUEST: a Linux guest")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="(default: a shell)")


def run(options: argparse.Namespace) -> int:
    from hostd.agent.link import AgentError
    from hostd.cli.targets import find_guest
    from hostd.control.client import ControlError
    from hostd.supervisor.errors import SupervisorError

    try:
        env = dict(_variable(text) for text in options.env)
        client, guest = find_guest(options.target)
        return asyncio.run(_exec(client, guest, options, env))
    except AgentError as error:
        return _complain(options, str(error), {errno.ENOENT: NOT_FOUND, 0: NOT_DONE}.get(error.code, CANNOT_RUN))
    except (ControlError, SupervisorError, OSError) as error:
        return _complain(options, str(error), NOT_DONE)


async def _exec(client: Client, guest: str, options: argparse.Namespace, env: dict[str, str]) -> int:
    from guestlib.linux.protocol import Type
    from hostd.agent import terminal
    from hostd.agent.link import exec_payload
    from hostd.agent.remote import open_stream

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    size = None
    if options.tty or (options.tty is None and not options.json and not options.no_stdin):
        size = terminal.window() or ((24, 80) if options.tty else None)
    if size and "TERM" in os.environ:
        env = {"TERM": os.environ["TERM"]} | env
    payload = exec_payload(command or SHELL, env=env, cwd=options.cwd, terminal=size, stdin=not options.no_stdin)
    async with await open_stream(client, guest, Type.EXEC, payload, wait=options.wait) as remote:
        if options.json:
            given = b"" if options.no_stdin or sys.stdin.isatty() else await asyncio.to_thread(sys.stdin.buffer.read)
            status, out, err = await terminal.collect(remote, given)
            print_json({"exit_code": status, "stdout": _text(out), "stderr": _text(err)})
            return status
        interrupts = 0

        def count(number: int) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT
            if interrupts >= IMPATIENCE:
                raise KeyboardInterrupt

        ours = size is not None and terminal.window() is not None
        return await terminal.attend(remote, terminal=ours, stdin=not options.no_stdin, on_signal=count)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        from hostd.agent.link import AgentError

        raise AgentError(f"--env {text}: is not NAME=VALUE")
    return name, value


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _complain(options: argparse.Namespace, sentence: str, code: int) -> int:
    print(f"hostd exec: {sentence}", file=sys.stderr)
    if options.json:
        out: dict[str, Any] = {"ok": False, "error": sentence}
        print_json(out)
    return code
