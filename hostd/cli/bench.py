"""hostd bench"""

from __future__ import annotations

import argparse
import sys

from hostd.cli.reporting import add_report_options, deliver

EXAMPLES = (
    "hostd bench boot debian-cloud --rounds 5",
    "hostd bench memory debian-cloud --guests 4 --memory 128MiB --json",
)


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


def run(options: argparse.Namespace) -> int:
    from hostd.bench.registry import load
    from hostd.supervisor.foreground import signals_raise

    with signals_raise():
        return deliver(load(options.benchmark).measure(options, _tell), options)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
