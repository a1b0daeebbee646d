"""hostd run"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hostd.cli.choosing import add_cluster, chosen
from hostd.cli.command import print_columns, print_json

EXAMPLES = (
    "hostd run examples/pingpong.toml",
    "hostd run examples/pingpong.toml --json",
    "hostd run examples/many.toml --set guest.hello.count=200",
    "hostd run --from worker --count 100",
)
LISTED_GUESTS = 40
"""of more guests, only those that failed are listed at the end"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    from hostd.cli.watching import LiveStatus, PlainStatus
    from hostd.supervisor.foreground import run as run_cluster

    cluster = chosen(options)
    if options.json:
        result = run_cluster(cluster)
        print_json(result)
    else:
        status = LiveStatus() if sys.stdout.isatty() else PlainStatus()
        result = run_cluster(cluster, status.watch)
        show(result)
    code: int = result["exit_code"]
    return code


def show(result: dict[str, Any]) -> None:
    """Print a run's result for people."""
    guests = result["guests"]
    listed = {
        name: guest
        for name, guest in guests.items()
        if len(guests) <= LISTED_GUESTS or guest["exit_code"] != 0 or guest["outcome"] != "exit"
    }
    print()
    rows = [(name, _outcome(guest), _reports(guest["reports"])) for name, guest in listed.items()]
    if rows:
        print_columns(("GUEST", "RESULT", "REPORTS"), rows)
    if len(listed) < len(guests):
        print(f"{len(guests) - len(listed)} more guests: exit 0")
    for name, value in result["baseline"].items():
        print(f"baseline {name}: {_number(value)}")
    if "check" in result:
        print(f"check: {result['check'].get('sentence', result['check'])}")
    start, memory = result["start"], result["memory"]
    per_guest = memory["per_guest_bytes"]
    cost = "" if per_guest is None else f"; {per_guest / 1048576:.2f} MiB per guest"
    rate = "" if start["guests_per_second"] is None else f" ({start['guests_per_second']:.0f} guests/s)"
    print(
        f"{len(guests)} guests started in {start['seconds']:.2f} s{rate}{cost}; the run took {result['seconds']:.2f} s"
    )


def _outcome(guest: dict[str, Any]) -> str:
    outcome = f"exit {guest['exit_code']}" if guest["outcome"] == "exit" else f"{guest['outcome']}: {guest['message']}"
    return f"{outcome}, {guest['restarts']} restarts" if guest["restarts"] else outcome


def _reports(reports: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_number(value)}" for name, value in reports.items())


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
