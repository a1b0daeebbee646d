"""hostd lab"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = (
    "hostd lab -- hostd doctor",
    "hostd lab -- hostd run examples/linux-pair.toml",
    "hostd lab --memory 6GiB --out results -- make -C mine check",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory", metavar="SIZE", help="of the machine (default: half of what is available, 8GiB at most)"
    )
    parser.add_argument("--cpus", type=int, metavar="N", default=1, help="of the machine (default: 1; see docs/lab.md)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder that really is written, at the same path")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end it after so long, with exit code 124")
    parser.add_argument("--verbose", action="store_true", help="show what its kernel says as it boots")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run in it, as root")


def run(options: argparse.Namespace) -> int:
    from hostd import lab
    from hostd.cluster.sizes import parse_size

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        memory = parse_size(options.memory) if options.memory else None
    except ValueError as error:
        raise lab.LabError(f"--memory: {error}") from None
    return lab.run(
        command,
        memory=memory,
        cpus=options.cpus,
        out=options.out,
        timeout=options.timeout,
        verbose=options.verbose,
    )
