"""hostd bench"""

from __future__ import annotations

import argparse
import sys

from hostd.cli.command import print_json

EXAMPLES = ("hostd bench boot debian-cloud", "hostd bench memory debian-cloud --guests 4 --memory 128MiB --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "figure", choices=("boot", "memory"), help="boot: time to init's first line; memory: of one guest"
    )
    parser.add_argument("kernel", help="an image's name or the path of a kernel")
    parser.add_argument("--initrd", help="an image's name or a path (default: hostd's own for that kernel)")
    parser.add_argument("--memory", default="128MiB", help="of each guest (default: 128MiB)")
    parser.add_argument("--rounds", type=int, default=5, help="boot: measured rounds after the warm-up (default: 5)")
    parser.add_argument("--guests", type=int, default=4, help="memory: guests of each kind (default: 4)")


def run(options: argparse.Namespace) -> int:
    from hostd.bench import linux_guests
    from hostd.cluster.sizes import parse_size

    memory = parse_size(options.memory)
    if options.figure == "boot":
        found = linux_guests.boot_times(options.kernel, options.initrd, memory, options.rounds, _tell)
    else:
        found = linux_guests.memory_figures(options.kernel, options.initrd, memory, options.guests, _tell)
    if options.json:
        print_json(found)
    else:
        for key, value in found.items():
            print(f"{key:22} {value}")
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
