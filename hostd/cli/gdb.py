"""hostd gdb"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostd.cli.command import print_json

if TYPE_CHECKING:
    from hostd.control.client import Client

EXAMPLES = (
    "hostd gdb tally",
    "hostd gdb lottery/tally -- -batch -ex 'break record' -ex continue -ex 'print *to' -ex detach",
    "hostd gdb a --symbols vmlinux",
    "hostd gdb tally --listen 127.0.0.1:1234",
)


def configure(parser: argparse.ArgumentParser) -> None:
    _options(parser)
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, action=_Rest, metavar="-- ARGUMENT", help="of gdb's own")


class _Rest(argparse.Action):
    """What stands behind GUEST: hostd's own options, then gdb's arguments behind --."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        own = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
        own.add_argument("--json", action="store_true")
        _options(own)
        # argparse itself drops a -- that stands right behind GUEST; then all that isn't known here is gdb's.
        cut = values.index("--") if "--" in values else len(values)
        rest = own.parse_known_args(values[:cut], namespace=namespace)[1]
        setattr(namespace, self.dest, [*rest, *values[cut + 1 :]])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--symbols", type=Path, metavar="FILE", help="the ELF file with the symbols (default: the guest's own)"
    )
    parser.add_argument(
        "--listen", metavar="WHERE", help="don't start gdb, but wait at HOST:PORT or PATH for clients until Ctrl-C"
    )
    parser.add_argument("--gdb", default="gdb", metavar="PROGRAM", help="the debugger to start (default: gdb)")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.gdb.linux_symbols import symbols_of

    client, guest = find_guest(options.guest)
    with client:
        place = _place(client, guest)
        symbols = options.symbols
        if symbols is None:
            symbols = symbols_of(_image(client, guest))
        elif not symbols.is_file():
            raise FileNotFoundError(2, "No such file", str(symbols))
        if options.listen is not None:
            return _listen(options, client, guest, symbols)
    file = [] if symbols is None else [str(symbols)]
    command = [options.gdb, "-q", *file, "-ex", f"target remote {place['socket']}", *options.arguments]
    if options.json:
        print_json(place | {"symbols": None if symbols is None else str(symbols), "command": command})
        return 0
    if shutil.which(options.gdb) is None:
        raise FileNotFoundError(
            2, "no such program; install it (apt install gdb), or use --listen and a client of your own", options.gdb
        )
    os.execvp(options.gdb, command)
    return 0


def _place(client: Client, guest: str) -> dict[str, Any]:
    place: dict[str, Any] = client.call("debug", guest=guest)
    return place


def _image(client: Client, guest: str) -> Path:
    """Return the program or kernel that the guest runs."""
    return Path(client.call("inspect", guests=[guest])["guests"][guest]["image"])


def _listen(options: argparse.Namespace, client: Client, guest: str, symbols: Path | None) -> int:
    from hostd.gdb.relay import listening, serve

    with contextlib.suppress(KeyboardInterrupt), listening(options.listen) as (listener, where):
        if options.json:
            print_json({"guest": guest, "listen": where, "symbols": None if symbols is None else str(symbols)})
        else:
            file = "" if symbols is None else f"file {symbols}; "
            print(f"waiting for debuggers of {guest} until Ctrl-C; in gdb: {file}target remote {where}")
        sys.stdout.flush()
        serve(listener, lambda: str(_place(client, guest)["socket"]))
    return 0
