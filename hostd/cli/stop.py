"""hostd stop"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = ("hostd stop many/hello-3", "hostd stop many")
CALL, DONE = "stop", "stopped"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="CLUSTER, CLUSTER/GUEST or GUEST")


def run(options: argparse.Namespace) -> int:
    return apply(options, CALL, DONE)


def apply(options: argparse.Namespace, call: str, done: str) -> int:
    """Ask for `call` on each target and say that it is `done`."""
    from hostd.cli.targets import find

    names: list[str] = []
    for target in options.targets:
        client, guests = find(target)
        with client:
            names += client.call(call, guests=guests)
    if options.json:
        print_json({done: names})
    else:
        print(f"{done} {', '.join(names)}")
    return 0
