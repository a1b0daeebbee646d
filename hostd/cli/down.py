"""hostd down"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = ("hostd down many", "hostd down examples/many.toml", "hostd down --all")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clusters", nargs="*", metavar="CLUSTER", help="name or file; default: the only one")
    parser.add_argument("--all", action="store_true", help="every cluster of this user")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import cluster_name, only_cluster
    from hostd.host import take_down
    from hostd.supervisor.background import attach
    from hostd.supervisor.directory import cluster_names

    names = cluster_names() if options.all else [cluster_name(name) for name in options.clusters]
    for name in names if options.all or names else [only_cluster()]:
        with attach(name) as client:
            take_down(client)
        if not options.json:
            print(f"cluster {name} is down")
    if options.json:
        print_json({"down": names})
    return 0
