"""Where a benchmark's report goes: a table, or JSON."""

from __future__ import annotations

import argparse
import shlex
import sys

from hostd.bench.report import Figure, Ratio, Report
from hostd.cli.command import print_columns


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks have."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--rounds", type=_rounds, default=5, help="measured rounds after the warm-up (default: 5)")


def deliver(report: Report, options: argparse.Namespace) -> int:
    """Complete `report` and send it where `options` say; return the exit code."""
    from hostd.bench.machine import describe

    report.machine = describe()
    report.command = shlex.join(["hostd", *sys.argv[1:]])
    if options.json:
        print(report.model_dump_json(indent=2))
    else:
        _print(report)
    return 0


def _rounds(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= 1000:
        raise argparse.ArgumentTypeError(f"{rounds} rounds; 1 to 1000 are possible")
    return rounds


def _print(report: Report) -> None:
    rows = [(figure.name, _value(figure), f"{figure.spread:.0%}") for figure in report.figures]
    print_columns(("FIGURE", "MEDIAN", "SPREAD"), rows, right=(1, 2))
    if report.ratios:
        print()
        ratios = [(ratio.name, _value(ratio), f"{ratio.spread:.0%}", _target(ratio)) for ratio in report.ratios]
        print_columns(("RATIO", "MEDIAN", "SPREAD", "TARGET"), ratios, right=(1, 2))
    for one in [*report.figures, *report.ratios]:
        if one.refused:
            print(f"{one.name}: no figure: {one.refused}")
    for note in report.notes:
        print(note)


def _value(one: Figure | Ratio) -> str:
    if one.value is None:
        return "-"
    return f"{one.value:.2f}" if isinstance(one, Ratio) else f"{one.value:,.4g} {one.unit}"


def _target(ratio: Ratio) -> str:
    if ratio.target is None:
        return "-"
    verdict = {True: "met", False: "missed", None: "unknown"}[ratio.holds]
    return f"{'at most' if ratio.at_most else 'at least'} {ratio.target:g}: {verdict}"
