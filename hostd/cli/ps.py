"""hostd ps"""

from __future__ import annotations

import argparse
from typing import Any

from hostd.cli.command import print_columns, print_json
from hostd.cluster.sizes import format_size

SHOWN = 4
"""guests of a network whose addresses are shown"""
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
        _show(clusters)
    else:
        print("no cluster runs; bring one up with `hostd up FILE`")
    return 0


def _show(clusters: list[dict[str, Any]]) -> None:
    state = ("STATE", "PID", "RESTARTS", "UP")
    guests = [_row(cluster["cluster"], guest, _result(guest)) for cluster in clusters for guest in cluster["guests"]]
    print_columns(("CLUSTER", "GUEST", *state, "RESULT"), guests, right=(3, 4, 5))
    networks = [(cluster, network) for cluster in clusters for network in cluster["networks"]]
    if networks:
        print()
        rows = [
            (*_row(cluster["cluster"], network, _memory(network)), _cpu(network), _addresses(cluster, network["name"]))
            for cluster, network in networks
        ]
        print_columns(("CLUSTER", "NETWORK", *state, "MEMORY", "CPU", "ADDRESSES"), rows, right=(3, 4, 5, 6, 7))


def _row(cluster: str, one: dict[str, Any], last: str) -> tuple[object, ...]:
    uptime = one["uptime_seconds"]
    up = None if uptime is None else f"{uptime:.0f} s"
    return cluster, one["name"], one["state"], one["pid"], one["restarts"], up, last


def _result(guest: dict[str, Any]) -> str:
    if guest["outcome"] is None:
        return ""
    return str(guest["message"] or f"{guest['outcome']} {guest['exit_code']}")


def _memory(network: dict[str, Any]) -> str:
    return "" if network["memory_bytes"] is None else format_size(network["memory_bytes"])


def _cpu(network: dict[str, Any]) -> str:
    return "" if network["cpu_seconds"] is None else f"{network['cpu_seconds']:.2f} s"


def _addresses(cluster: dict[str, Any], network: str) -> str:
    """Return who is where on a network, as far as it fits in a line."""
    ports = [(guest["name"], guest["networks"].get(network)) for guest in cluster["guests"]]
    there = [f"{name} {port['address'] or port['mac']}" for name, port in ports if port is not None]
    more = f", ... ({len(there)})" if len(there) > SHOWN else ""
    return ", ".join(there[:SHOWN]) + more
