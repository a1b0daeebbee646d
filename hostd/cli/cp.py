"""hostd cp"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hostd.cli.command import USAGE, print_json

if TYPE_CHECKING:
    from hostd.agent.copying import Copied, Place

EXAMPLES = ("hostd cp prog.py a:/root", "hostd cp pair/a:/var/log logs", "hostd cp a:/root/found b:/root")
WAIT = 30.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file or folder: PATH, GUEST:PATH or CLUSTER/GUEST:PATH")
    parser.add_argument("destination", metavar="DESTINATION", help="the same; in a folder the copy keeps its name")
    parser.add_argument(
        "--wait", type=float, default=WAIT, metavar="SECONDS", help="for a guest that still boots (default: 30)"
    )


def run(options: argparse.Namespace) -> int:
    source, destination = _parse(options.source), _parse(options.destination)
    if source[0] is None and destination[0] is None:
        print("hostd cp: neither SOURCE nor DESTINATION is in a guest (GUEST:PATH)", file=sys.stderr)
        return USAGE
    with _shown(options) as progress:
        copied = asyncio.run(_copy(source, destination, options.wait, progress))
    if options.json:
        print_json({"files": copied.files, "bytes": copied.size, "skipped": copied.skipped})
    else:
        print(f"copied {_count(copied.files, 'file')}, {copied.size} bytes")
        if copied.skipped:
            left_out = _count(copied.skipped, "device, pipe or socket", "devices, pipes or sockets")
            print(f"hostd cp: {left_out} left out", file=sys.stderr)
    return 0


async def _copy(
    source: tuple[str | None, str],
    destination: tuple[str | None, str],
    wait: float,
    progress: Callable[[int], None],
) -> Copied:
    from hostd.agent import copying

    if source[0] is None:
        return await copying.copy_in(Path(source[1]), _place(destination[0], destination[1], wait), progress)
    if destination[0] is None:
        return await copying.copy_out(_place(source[0], source[1], wait), Path(destination[1]), progress)
    there = _place(source[0], source[1], wait)
    return await copying.copy_across(there, _place(destination[0], destination[1], wait), progress)


def _parse(text: str) -> tuple[str | None, str]:
    """Return a target (None: this host) and a path. What starts with / or . is a path here, whatever is in it."""
    target, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or not target:
        return None, text
    return target, path or "/"


def _place(target: str | None, path: str, wait: float) -> Place:
    from guestlib.linux.protocol import Type
    from hostd.agent.copying import Place
    from hostd.agent.remote import RemoteStream, open_stream
    from hostd.cli.targets import find_guest

    assert target is not None
    client, guest = find_guest(target)

    async def open_one(kind: Type, payload: bytes) -> RemoteStream:
        return await open_stream(client, guest, kind, payload, wait=wait)

    return Place(guest, path, open_one)


@contextlib.contextmanager
def _shown(options: argparse.Namespace) -> Iterator[Callable[[int], None]]:
    """Show the bytes that have been copied, on a terminal."""
    if options.json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("copying"), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("copying", total=None)
        yield lambda size: shown.advance(task, size)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
