"""hostd attach"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = ("hostd attach grower board", "hostd attach grower board --ro --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST; a unikernel that runs")
    parser.add_argument("region", metavar="REGION", help="a region of its cluster file")
    parser.add_argument("--ro", action="store_true", help="the guest may only read it")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.cluster.sizes import format_size

    client, guest = find_guest(options.guest)
    with client:
        told = client.call("attach", guest=guest, region=options.region, access="ro" if options.ro else "rw")
    if options.json:
        print_json(told)
    else:
        print(f"{guest}: region {told['name']}, {format_size(told['size'])} at {told['gpa']:#x}, {told['access']}")
    return 0
