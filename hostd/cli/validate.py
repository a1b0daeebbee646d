"""hostd validate"""

from __future__ import annotations

import argparse

from hostd.cli.command import add_file, print_json

EXAMPLES = ("hostd validate examples/pingpong.toml", "hostd validate cluster.toml --set guest.a.memory=1GiB")


def configure(parser: argparse.ArgumentParser) -> None:
    add_file(parser)


def run(options: argparse.Namespace) -> int:
    from hostd.cluster.file import load
    from hostd.supervisor.preflight import prepare

    cluster = load(options.file, options.overrides)
    plan, boots = prepare(cluster)
    facts = {
        "cluster": cluster.name,
        "guests": list(plan.guests),
        "regions": list(cluster.regions),
        "channels": list(cluster.channels),
        "networks": {
            network: {
                name: guest.ports[network].describe() for name, guest in plan.guests.items() if network in guest.ports
            }
            for network in cluster.networks
        },
        "images": {name: boot.path for name, boot in boots.items()},
    }
    if options.json:
        print_json({"ok": True, **facts})
    else:
        counts = ", ".join(f"{len(facts[key])} {key}" for key in ("guests", "regions", "channels", "networks"))
        print(f"{options.file}: cluster {cluster.name} is valid: {counts}")
    return 0
