"""hostd view"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading

EXAMPLES = ("hostd view plasma", "hostd view plasma --port 8080")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 to listen on (default: any that is free)")
    parser.add_argument("--rate", type=float, default=10.0, help="pictures a second, at most (default: 10)")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.command import print_json
    from hostd.cli.targets import find_guest
    from hostd.screen.guest import frame_of, memory_of
    from hostd.screen.picture import png
    from hostd.screen.viewer import Viewer

    client, guest = find_guest(options.guest)
    lock = threading.Lock()  # One connection, which every browser's thread uses.
    with client:
        frame = frame_of(client, guest)

        def take() -> bytes:
            with lock:
                return memory_of(client, guest, frame)

        def encode(memory: bytes) -> bytes:
            return png(frame.image(memory), fast=True)

        with (
            contextlib.suppress(KeyboardInterrupt),
            Viewer(guest, take, encode, port=options.port, rate=options.rate) as viewer,
        ):
            if options.json:
                print_json({"guest": guest, "url": viewer.url})
            else:
                print(f"{viewer.url} shows {guest} until Ctrl-C")
            sys.stdout.flush()
            viewer.serve_forever()
            if viewer.failed is not None:
                raise viewer.failed
    return 0
