"""hostd up"""

from __future__ import annotations

import argparse

from hostd.cli.choosing import add_cluster, chosen
from hostd.cli.command import print_json

EXAMPLES = ("hostd up examples/many.toml --set guest.hello.count=8", "hostd up cluster.toml --json")


def configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    from hostd.supervisor.background import attach, start
    from hostd.supervisor.preflight import check_kvm, prepare

    cluster = chosen(options)
    check_kvm()
    prepare(cluster)
    start(cluster)
    with attach(cluster.name) as client:
        state = client.call("ps")
    if options.json:
        print_json(state)
    else:
        count = len(state["guests"])
        print(f"cluster {cluster.name} is up with {count} guests; `hostd down {cluster.name}` ends it")
    return 0
