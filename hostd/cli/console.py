"""hostd console"""

from __future__ import annotations

import argparse
import sys

EXAMPLES = ("hostd console pair/a", "echo 'ls /' | hostd console a")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="CLUSTER/GUEST or GUEST: a Linux guest")


def run(options: argparse.Namespace) -> int:
    from hostd.agent import console
    from hostd.cli.targets import find_guest
    from hostd.supervisor.directory import ClusterDirectory

    client, guest = find_guest(options.target)
    with client:
        directory = ClusterDirectory(client.call("ps")["cluster"])
    with console.connect(directory.guests / f"{guest}.console.sock", guest) as link, console.raw_terminal() as raw:
        if raw:
            sys.stderr.write(f"attached to {guest}; Ctrl-] detaches\r\n")
        ended = console.attend(link, detachable=raw)
    print(f"\n{guest} ended" if ended else f"\ndetached from {guest}", file=sys.stderr)
    return 0
