"""hostd ps"""

from __future__ import annotations

import argparse
from typing import Any

from hostd.cli.command import print_columns, print_json

EXAMPLES = ("hostd ps", "hostd ps many --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", nargs="?", metavar="CLUSTER", help="default: all that run")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import cluster_name
    from hostd.supervisor.background import attach
    from hostd.supervisor.directory import cluster_names
    from hostd.supervisor.errors import NoSuchClusterError

    names = cluster_names() if options.cluster is None else [cluster_name(options.cluster)]
    clusters = []
    for name in names:
        try:
            with attach(name) as client:
                clusters.append(client.call("ps"))
        except NoSuchClusterError:
            if options.cluster is not None:
                raise
    if options.json:
        print_json(clusters)
    elif clusters:
        head = ("CLUSTER", "GUEST", "STATE", "PID", "RESTARTS", "UP", "RESULT")
        rows = [_row(cluster["cluster"], guest) for cluster in clusters for guest in cluster["guests"]]
        print_columns(head, rows, right=(3, 4, 5))
    else:
        print("no cluster runs; bring one up with `hostd up FILE`")
    return 0


def _row(cluster: str, guest: dict[str, Any]) -> tuple[object, ...]:
    uptime = guest["uptime_seconds"]
    result = ""
    if guest["outcome"] is not None:
        result = guest["message"] or f"{guest['outcome']} {guest['exit_code']}"
    up = None if uptime is None else f"{uptime:.0f} s"
    return cluster, guest["name"], guest["state"], guest["pid"], guest["restarts"], up, result
