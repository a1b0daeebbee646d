"""hostd console"""

from __future__ import annotations

import argparse
import sys

EXAMPLES = ("hostd console pair/a", "hostd console a --lines 0", "echo reboot | hostd console a")
LINES = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="CLUSTER/GUEST or GUEST: a Linux guest")
    parser.add_argument(
        "-n", "--lines", type=int, default=LINES, metavar="N", help=f"begin with the log's last N (default: {LINES})"
    )


def run(options: argparse.Namespace) -> int:
    from hostd.agent import console
    from hostd.cli.targets import find_guest
    from hostd.supervisor.directory import ClusterDirectory

    client, guest = find_guest(options.target)
    with client:
        directory = ClusterDirectory(client.call("ps")["cluster"])
    with console.connect(directory.guests / f"{guest}.console.sock", guest) as link:
        before = console.last_lines(directory.log(guest), max(0, options.lines))
        with console.raw_terminal() as raw:
            if raw:
                sys.stderr.write(f"attached to {guest}; Ctrl-] detaches\r\n")
                before = before.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            sys.stdout.buffer.write(before)
            sys.stdout.flush()
            ended = console.attend(link, detachable=raw)
    print(f"\n{guest} ended" if ended else f"\ndetached from {guest}", file=sys.stderr)
    return 0
