"""hostd inspect"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_json

EXAMPLES = ("hostd inspect many", "hostd inspect many/hello-3", "hostd inspect many --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="CLUSTER, CLUSTER/GUEST or GUEST")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find

    client, guests = find(options.target)
    with client:
        known = client.call("inspect", guests=guests)
    if options.json:
        print_json(known)
    else:
        _show(known, "")
    return 0


def _show(value: object, indent: str) -> None:
    """Print nested tables as indented lines."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, dict | list) and item:
            print(f"{indent}{key}:")
            _show(item, indent + "  ")
        else:
            print(f"{indent}{key}: {_text(key, item)}")


def _text(key: object, value: object) -> str:
    if value is None or value in ({}, []):
        return "-"
    if key in ("gpa", "hva", "rip", "rsp", "address", "offset") and isinstance(value, int):
        return f"{value:#x}"
    return str(value)
