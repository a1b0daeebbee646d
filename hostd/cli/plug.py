"""hostd plug"""

from __future__ import annotations

import argparse
from typing import Any

from hostd.cli.command import print_columns, print_json

EXAMPLES = (
    "hostd plug grower memory 64MiB",
    "hostd plug grower framebuffer --width 640 --height 480",
    "hostd plug grower --json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST; a unikernel that runs")
    parser.add_argument("kind", nargs="?", choices=("memory", "framebuffer"), help="default: list what it was given")
    parser.add_argument("size", nargs="?", metavar="SIZE", help="of memory, such as 64MiB")
    parser.add_argument("--name", help="what the memory is called, for the guest and `hostd unplug`")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="of a frame buffer (default: 1024)")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="of a frame buffer (default: 768)")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.cluster.sizes import format_size

    arguments = _arguments(options)
    client, guest = find_guest(options.guest)
    with client:
        if options.kind is not None:
            told = client.call("plug", guest=guest, kind=options.kind, **arguments)
        else:
            told = client.call("plugged", guest=guest)
    if options.json:
        print_json(told)
    elif options.kind is not None:
        print(f"{guest}: {told['name']}, {format_size(told['size'])} at {told['gpa']:#x}")
    else:
        rows = [(p["name"], p["kind"], hex(p["gpa"]), format_size(p["size"]), p["access"]) for p in told]
        print_columns(("NAME", "KIND", "ADDRESS", "SIZE", "ACCESS"), rows, right=(2, 3))
    return 0


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the call's arguments. Raises ClusterFileError."""
    from hostd.cluster.errors import ClusterFileError
    from hostd.cluster.sizes import parse_size

    if options.kind == "framebuffer":
        if options.size is not None:
            raise ClusterFileError("a frame buffer has no SIZE; say --width and --height")
        return {"width": options.width, "height": options.height}
    if options.kind is None:
        return {}
    if options.size is None:
        raise ClusterFileError("how much memory? Say a SIZE, such as 64MiB")
    try:
        return {"size": parse_size(options.size), "label": options.name}
    except ValueError as error:
        raise ClusterFileError(f"SIZE: {error}") from None
