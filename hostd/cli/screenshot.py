"""hostd screenshot"""

from __future__ import annotations

import argparse
from pathlib import Path

from hostd.cli.command import print_json

EXAMPLES = ("hostd screenshot plasma out.png", "hostd screenshot many/hello-3 out.png --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")
    parser.add_argument("file", metavar="FILE", type=Path, help="the PNG file to write")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest
    from hostd.screen.guest import screenshot
    from hostd.screen.picture import png

    client, guest = find_guest(options.guest)
    with client:
        image = screenshot(client, guest)
    options.file.write_bytes(png(image))
    if options.json:
        print_json({"guest": guest, "file": str(options.file), "width": image.width, "height": image.height})
    else:
        print(f"{options.file}: {image.width} x {image.height}, what {guest} shows")
    return 0
