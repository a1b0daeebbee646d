"""hostd bench"""

from __future__ import annotations

import argparse
from pathlib import Path

from hostd.cli.reporting import add_report_options, show, take

EXAMPLES = (
    "hostd bench boot debian-cloud --rounds 5",
    "hostd bench memory debian-cloud --guests 4 --memory 128MiB --json",
    "hostd bench latency --html latency.html --plot latency.png --compare before.json",
    "hostd bench show latency.json --html latency.html",
)
SHOW = "show"
"""is no benchmark: shows what one has found before"""


def configure(parser: argparse.ArgumentParser) -> None:
    from hostd.bench.registry import MODULES, load

    kinds = parser.add_subparsers(metavar="BENCHMARK", dest="benchmark", required=True)
    for name, summary in MODULES.items():
        module = load(name)
        epilog = "examples:\n" + "".join(f"  {line}\n" for line in module.EXAMPLES)
        kind = kinds.add_parser(
            name,
            help=summary,
            description=f"Measures {summary}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_report_options(kind)
        module.configure(kind)
    again = kinds.add_parser(SHOW, help="a report that was written with --json", description="Shows a report again.")
    again.add_argument("report", type=Path, metavar="REPORT", help="what a benchmark wrote with --json")
    add_report_options(again, rounds=False)


def run(options: argparse.Namespace) -> int:
    from hostd.bench.compare import read
    from hostd.bench.registry import load
    from hostd.supervisor.foreground import signals_raise

    if options.benchmark == SHOW:
        return show(read(options.report), options)
    with signals_raise():
        return take(options.benchmark, load(options.benchmark).measure, options)
