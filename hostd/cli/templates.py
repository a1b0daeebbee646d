"""hostd templates"""

from __future__ import annotations

import argparse
import time

from hostd.cli.command import print_columns, print_json

EXAMPLES = ("hostd templates", "hostd templates --json", "hostd templates rm worker")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["ls", "rm"], default="ls", help="list (the default) or remove")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the templates to remove")


def run(options: argparse.Namespace) -> int:
    from hostd.cluster.sizes import format_size
    from hostd.templates import TemplateError, listing, remove

    if (options.action == "rm") != bool(options.names):
        raise TemplateError("`hostd templates rm NAME...` removes templates, `hostd templates` lists them")
    for name in options.names:
        remove(name)
    found = [] if options.names else [template.describe() for template in listing()]
    if options.json:
        print_json({"removed": options.names} if options.names else found)
    elif not options.names:
        rows = [
            (
                told["name"],
                told["kind"],
                told["guest"],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(told["made"])),
                format_size(told["memory"]),
                format_size(told["disk"]),
            )
            for told in found
        ]
        print_columns(("NAME", "KIND", "GUEST", "MADE", "MEMORY", "ON DISK"), rows, right=(4, 5))
    return 0
