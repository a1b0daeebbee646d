"""hostd stop"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = ("hostd stop many/hello-3", "hostd stop many", "hostd stop --grace 0 pair/a")
ANSWER_LIMIT = 30.0


def configure(parser: argparse.ArgumentParser) -> None:
    add_targets(parser)
    parser.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="for Linux guests to end in good order, before they are stopped by force (default: 10)",
    )


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add TARGET..., which `apply` takes."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="CLUSTER, CLUSTER/GUEST or GUEST")


def run(options: argparse.Namespace) -> int:
    return apply(options, "stop", "stopped", grace=options.grace)


def apply(
    options: argparse.Namespace, call: str, done: str, *, grace: float | None = None, nothing: str = "nothing"
) -> int:
    """Ask for `call` on each target and say that it is `done`, or that `nothing` was."""
    from hostd.cli.targets import find

    names: list[str] = []
    for target in options.targets:
        client, guests = find(target)
        with client:
            names += client.call(call, timeout=ANSWER_LIMIT + (grace or 0), guests=guests, grace=grace)
    if options.json:
        print_json({done: names})
    else:
        print(f"{done} {', '.join(names) or nothing}")
    return 0
