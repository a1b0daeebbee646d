"""hostd template"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = (
    "hostd template warm worker",
    "hostd template debian/web web --replace",
    "hostd run --from worker --count 100",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST; it goes on afterwards")
    parser.add_argument("name", metavar="NAME", help="of the template")
    parser.add_argument("--replace", action="store_true", help="a template of that name")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.cluster.sizes import format_size
    from hostd.templates.making import make
    from hostd.templates.store import check_name

    check_name(options.name)
    client, guest = find_guest(options.guest)
    with client:
        template = make(client, guest, options.name, replace=options.replace)
    if options.json:
        print_json(template.describe())
    else:
        print(
            f"template {template.name}: {format_size(template.size)} of memory, "
            f"{format_size(template.disk_size)} on disk; make guests of it with `hostd run --from {template.name}`"
        )
    return 0
