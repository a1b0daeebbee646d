"""hostd pageout"""

from __future__ import annotations

import argparse
import sys

from hostd.cli.command import print_columns, print_json

EXAMPLES = (
    "hostd pageout idle",
    "hostd pageout many/hello-3 --bytes 8MiB",
    "hostd pageout paged --slot ram --json",
)
TIMEOUT = 3600.0
"""seconds: a guest may be large and a disk slow"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")
    parser.add_argument("--slot", metavar="NAME", help="only the rows of this name (default: all that are its own)")
    parser.add_argument("--bytes", metavar="SIZE", type=_size, help="at most so many, such as 64MiB (default: all)")


def _size(text: str) -> int:
    from hostd.cluster.sizes import parse_size

    try:
        return parse_size(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.cluster.sizes import format_size

    client, guest = find_guest(options.guest)
    with client:
        done = client.call("pageout", timeout=TIMEOUT, guest=guest, slot=options.slot, bytes=options.bytes)
    # Most stayed, and the host is why: whoever waits for the memory must hear of it.
    status = 1 if done["note"] else 0
    if options.json:
        print_json(done)
        return status
    places = [f"{format_size(done[key])} to {where}" for key, where in (("to_swap", "swap"), ("to_files", "files"))]
    print(f"{guest}: {format_size(done['left'])} left memory, {' and '.join(places)}; it runs on")
    rows = [
        (f"{row['gpa']:#x}", row["name"], row["backing"], *(format_size(row[key]) for key in ("before", "resident")))
        for row in done["slots"]
    ]
    print_columns(("ADDRESS", "NAME", "BACKING", "WAS", "RESIDENT"), rows, right=range(3, 5))
    if done["note"]:
        print(f"hostd pageout: {done['note']}", file=sys.stderr)
    return status
