"""Where a benchmark's report goes: tables on the terminal or JSON, a picture, a page; and how its progress is shown."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hostd.bench import BenchError
from hostd.bench.compare import Comparison, compare, read
from hostd.bench.quantity import quantity
from hostd.bench.report import Figure, Ratio, Report
from hostd.bench.rounds import Step, Tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 1000
"""columns where no terminal says how many there are: nothing is broken or cut"""
COLOURS = {"met": "green", "better": "green", "missed": "red", "worse": "red"}


def add_report_options(parser: argparse.ArgumentParser, *, rounds: bool = True) -> None:
    """Add the options that all benchmarks have."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    files = [
        parser.add_argument("--plot", type=Path, metavar="FILE", help="write charts to FILE: .png, .svg or .pdf"),
        parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with all there is to FILE"),
        parser.add_argument(
            "--compare", type=Path, metavar="OLD", help="say what has changed since OLD, a --json of before"
        ),
    ]
    for file in files:
        file.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
    if rounds:
        parser.add_argument("--rounds", type=_rounds, default=5, help="measured rounds after the warm-up (default: 5)")


def take(bench: str, measure: Callable[[argparse.Namespace, Tell], Report], options: argparse.Namespace) -> int:
    """Have `measure` make a report of the benchmark `bench` and send it where `options` say; return the exit code.

    What is asked of the report is looked at first: nothing is measured in vain. Raises BenchError and what `measure`
    raises.
    """
    from hostd.bench.machine import describe

    old = _prepare(bench, options)
    with progress() as tell:
        report = measure(options, tell)
    report.machine = describe()
    report.command = shlex.join(["hostd", *sys.argv[1:]])
    report.taken = datetime.now(UTC).isoformat(timespec="seconds")
    _deliver(report, old, options)
    return 0


def show(report: Report, options: argparse.Namespace) -> int:
    """Send a report of before where `options` say; return the exit code. Raises BenchError."""
    _deliver(report, _prepare(report.bench, options), options)
    return 0


def _rounds(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= 1000:
        raise argparse.ArgumentTypeError(f"{rounds} rounds; 1 to 1000 are possible")
    return rounds


# --- before ---


def _prepare(bench: str, options: argparse.Namespace) -> Report | None:
    """Look at what `options` ask of a report; return the earlier one to compare with. Raises BenchError."""
    if options.plot is not None:
        from hostd.bench import plot

        if options.plot.suffix not in plot.FORMATS:
            raise BenchError(f"--plot {options.plot}: the name must end in {', '.join(plot.FORMATS)}")
        plot.check()
    if options.html is not None:
        from hostd.bench import page

        page.check()
    for option, path in (("--plot", options.plot), ("--html", options.html)):
        if path is None:
            continue
        if path.is_dir():
            raise BenchError(f"{option} {path}: is a folder; give the name of a file")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise BenchError(f"{option} {path}: cannot be written there")
    return None if options.compare is None else read(options.compare, bench)


@contextmanager
def progress() -> Iterator[Tell]:
    """Show progress on standard error: a bar on a terminal, else a line for each thing that is begun."""
    if not sys.stderr.isatty():
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def tell(line: str) -> None:
            if isinstance(line, Step):
                bar.update(task, description=line, completed=line.done, total=line.total)
            else:
                bar.update(task, description=line)

        yield tell


# --- after ---


def _deliver(report: Report, old: Report | None, options: argparse.Namespace) -> None:
    """Send `report` to every place asked for, whatever happens to the others. Raises BenchError, BrokenPipeError."""
    comparison = None if old is None else compare(old, report, str(options.compare))
    failed = []
    for option, path, write in (("--plot", options.plot, _write_picture), ("--html", options.html, _write_page)):
        if path is None:
            continue
        try:
            write(report, comparison, path)
        except (OSError, BenchError) as error:
            failed.append(f"{option} {path}: {getattr(error, 'strerror', None) or error}")
        else:
            print(f"wrote {path}", file=sys.stderr)
    if options.json:
        whole = report.model_dump(mode="json")
        print(json.dumps(whole | ({} if comparison is None else {"comparison": comparison.model_dump()}), indent=2))
    else:
        _print(report, comparison)
    if failed:
        raise BenchError("; ".join(failed))


def _write_picture(report: Report, _comparison: Comparison | None, path: Path) -> None:
    from hostd.bench.plot import picture

    picture(report, path)


def _write_page(report: Report, comparison: Comparison | None, path: Path) -> None:
    from hostd.bench.page import page

    path.write_text(page(report, comparison), encoding="utf-8")


def _print(report: Report, comparison: Comparison | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    table = _table("FIGURE", "MEDIAN", "SPREAD")
    for figure in report.figures:
        _row(table, figure.name, _figure(figure), f"{figure.spread:.0%}", style="dim" if figure.baseline else "")
    _show(console, table)
    if report.ratios:
        table = _table("RATIO", "MEDIAN", "SPREAD", "TARGET ", " ")
        for ratio in report.ratios:
            _row(table, ratio.name, _ratio(ratio), f"{ratio.spread:.0%}", _target(ratio), _verdict(ratio))
        console.print()
        _show(console, table)
    if comparison is not None:
        console.print()
        _say_compared(console, comparison, say)
    refused = [one for one in (*report.figures, *report.ratios) if one.refused]
    if refused or report.notes:
        console.print()
    for one in refused:
        say(f"{one.name}: no figure: {one.refused}.")
    for note in report.notes:
        say(note)


def _say_compared(console: Console, comparison: Comparison, say: Tell) -> None:
    table = _table("COMPARED", "OLD", "NEW", "CHANGE", " ")
    for change in comparison.changes:
        by = "-" if change.change is None else f"{change.change:+.1%}"
        old, new = ("-" if value is None else quantity(value, change.unit) for value in (change.old, change.new))
        _row(table, change.name, old, new, by, change.verdict)
    _show(console, table)
    for note in comparison.notes:
        say(note)
    for names, what in ((comparison.gone, "the old report"), (comparison.added, "this report")):
        if names:
            say(f"Only in {what}: {', '.join(names)}")


def _table(*head: str) -> Table:
    """Return a table under `head`: names on the left, then numbers, then text where a head ends in a blank."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, name in enumerate(head):
        is_number = number > 0 and not name.endswith(" ")
        table.add_column(name.strip(), justify="right" if is_number else "left", overflow="fold")
    return table


def _row(table: Table, *cells: str, style: str = "") -> None:
    """Add `cells` as they are: nothing in them is markup."""
    from rich.text import Text

    table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in cells), style=style)


def _show(console: Console, table: Table) -> None:
    """Print `table`; in a pipe or file without the blanks that fill its last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), markup=False, soft_wrap=True)


def _figure(figure: Figure) -> str:
    return "-" if figure.value is None else quantity(figure.value, figure.unit)


def _ratio(ratio: Ratio) -> str:
    return "-" if ratio.value is None else quantity(ratio.value, "ratio")


def _target(ratio: Ratio) -> str:
    return "" if ratio.target is None else f"{'at most' if ratio.at_most else 'at least'} {ratio.target:g}"


def _verdict(ratio: Ratio) -> str:
    return "" if ratio.target is None else {True: "met", False: "missed", None: "unknown"}[ratio.holds]
