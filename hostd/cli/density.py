"""hostd density"""

from __future__ import annotations

import argparse

from hostd.cli.reporting import add_report_options, take

EXAMPLES = (
    "hostd density",
    "hostd density --guests 100,200 --modes shared --rounds 1 --json",
    "hostd density --step 50 --most 400 --image-size 16MiB",
    "hostd density --html density.html --plot density.png",
    "hostd lab --memory 3GiB -- hostd density --kernel debian-cloud --guests 1,2,4 --rounds 1",
)


def configure(parser: argparse.ArgumentParser) -> None:
    from hostd.bench.density import configure as configure_sweep

    add_report_options(parser)
    parser.set_defaults(rounds=3)
    configure_sweep(parser)


def run(options: argparse.Namespace) -> int:
    from hostd.bench.density import measure

    return take("density", measure, options)
