"""hostd balloon"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_columns, print_json

EXAMPLES = ("hostd balloon web", "hostd balloon web --target 64MiB", "hostd balloon web --target 0 --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST; a Linux guest")
    parser.add_argument(
        "--target", metavar="SIZE", help="what the balloon is to hold: memory that the guest does without (0: nothing)"
    )


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.cluster.errors import ClusterFileError
    from hostd.cluster.sizes import format_size, parse_size

    target = None
    if options.target is not None:
        try:
            target = parse_size(options.target)
        except ValueError as error:
            raise ClusterFileError(f"--target: {error}") from None
    client, guest = find_guest(options.guest)
    with client:
        told = client.call("balloon", guest=guest, target=target)
    if options.json:
        print_json(told)
        return 0
    sizes = {
        "asked to hold": told["target"],
        "holds": told["actual"],
        "given back to the host, in all": told["released"],
        "free pages that it reported": told["reported"],
    }
    rows = [(name, format_size(value)) for name, value in sizes.items()]
    sized = ("free", "total", "available", "caches")
    rows += [(f"the guest says: {name}", format_size(told["guest"][name])) for name in sized if name in told["guest"]]
    print_columns(("BALLOON", guest.upper()), rows, right=(1,))
    return 0
