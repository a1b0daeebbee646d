"""hostd unplug"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = (
    "hostd unplug grower memory-0",
    "hostd unplug grower memory-0 --timeout 60",
    "hostd unplug grower framebuffer --force --json",
)


def configure(parser: argparse.ArgumentParser, what: str = "NAME") -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")
    parser.add_argument("name", metavar=what, help="as `hostd plug GUEST` lists it")
    parser.add_argument("--force", action="store_true", help="take it without asking; if the guest uses it, it faults")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="how long the guest may take (default: 5)"
    )


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest

    client, guest = find_guest(options.guest)
    with client:
        wait = options.timeout + 30
        arguments = {"label": options.name, "force": options.force, "seconds": options.timeout}
        told = client.call("unplug", timeout=wait, guest=guest, **arguments)
    if options.json:
        print_json(told)
    else:
        print(f"{guest}: {told['name']} is gone")
    return 0
