"""hostd slots"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_columns, print_json

EXAMPLES = ("hostd slots hello-3", "hostd slots many/hello-3 --json")
COUNTED = ("size", "resident", "shared", "private", "swapped")
"""columns; and "huge", where there are huge pages"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.cluster.sizes import format_size

    client, guest = find_guest(options.guest)
    with client:
        table = client.call("slots", guest=guest)
    if options.json:
        print_json(table)
        return 0
    counted = (*COUNTED, "huge") if any(row["huge"] for row in table["slots"]) else COUNTED
    rows = [
        (f"{row['gpa']:#x}", row["name"], row["access"], row["backing"], *(format_size(row[key]) for key in counted))
        for row in table["slots"]
    ]
    totals = [format_size(sum(row[key] for row in table["slots"])) for key in counted]
    head = ("ADDRESS", "NAME", "ACCESS", "BACKING", *(key.upper() for key in counted))
    print_columns(head, [*rows, ("", "total", "", "", *totals)], right=range(4, 4 + len(counted)))
    return 0
