"""A report beside an earlier one: what has changed, and whether that is more than the noise of both."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hostd.bench import BenchError
from hostd.bench.report import Better, Figure, Ratio, Report

SAME_PACE = 0.05
"""part by which baselines may change without a word"""
FEWEST = 3
"""rounds on either side without which nothing is known of the noise"""
ELSEWHERE = ("--plot", "--html", "--compare", "--rounds")
"""options that say nothing of what is measured"""
LARGEST = 64 << 20
"""bytes of a report that is read"""
SAME_MACHINE = ("processor", "cpus", "memory_bytes", "kernel", "kvm", "python")
"""what of a machine must be the same for its figures to be compared without a word"""


class Change(BaseModel):
    """One figure or ratio of both reports."""

    model_config = ConfigDict(frozen=True)

    name: str
    unit: str
    """"ratio" for a ratio"""
    old: float | None
    new: float | None
    """medians; None for one that its spread makes meaningless"""
    change: float | None
    """part of the old one that the new one is more; None where that can't be said"""
    certain: bool | None
    """whether that is more than the spreads explain; None where that can't be said"""
    verdict: str
    """in a few words"""


class Comparison(BaseModel):
    """What has changed since the report `path`."""

    path: str
    command: str
    changes: list[Change] = []
    gone: list[str] = []
    """figures that only the old report has"""
    added: list[str] = []
    """figures that only the new report has"""
    notes: list[str] = []
    """what makes the two hard to compare, a sentence each"""


def read(path: Path, bench: str | None = None) -> Report:
    """Return the report at `path`. Raises BenchError: there is none, or it is not one of the benchmark `bench`."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise BenchError(f"{path}: {size} bytes are too many for a report")
        text = path.read_text()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BenchError(f"{path}: is no JSON; give a file that `hostd bench ... --json` has written") from None
    try:
        report = Report.model_validate_json(text)
    except ValidationError as error:
        raise BenchError(f"{path}: is no report of a benchmark: {_first(error)}") from None
    if bench is not None and report.bench != bench:
        raise BenchError(f"{path}: is a report of {report.bench!r}, not of {bench!r}")
    return report


def _first(error: ValidationError) -> str:
    """Return pydantic's first complaint, and where it found it."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(map(str, first["loc"]))
    more = f" (and {len(others)} more)" if others else ""
    return f"{where}: {first['msg']}{more}" if where else f"{first['msg']}{more}"


def compare(old: Report, new: Report, path: str) -> Comparison:
    """Return what has changed from `old`, read from `path`, to `new`."""
    before, now = _all(old), _all(new)
    both = [name for name in now if name in before]
    other_units = [name for name in both if _unit(before[name]) != _unit(now[name])]
    return Comparison(
        path=path,
        command=old.command,
        changes=[_change(before[name], now[name], _better(new, now[name])) for name in both if name not in other_units],
        gone=[name for name in before if name not in now],
        added=[name for name in now if name not in before],
        notes=[
            *(
                f"{name} was in {_unit(before[name])} and is in {_unit(now[name])}: not compared."
                for name in other_units
            ),
            *_other_machine(old.machine, new.machine),
            *_other_command(old, new),
            *_other_pace(old, new),
        ],
    )


Measured = Figure | Ratio


def _all(report: Report) -> Mapping[str, Measured]:
    figures: list[Measured] = [*report.figures, *report.ratios]
    return {figure.name: figure for figure in figures}


def _unit(one: Measured) -> str:
    return one.unit if isinstance(one, Figure) else "ratio"


def _better(report: Report, one: Measured) -> Better | None:
    """Which way is better; None for a ratio of figures that are not there."""
    if isinstance(one, Figure):
        return one.better
    if one.target is not None:
        return "lower" if one.at_most else "higher"
    return next((figure.better for figure in report.figures if figure.name == one.of), None)


def _change(old: Measured, new: Measured, better: Better | None) -> Change:
    if old.refused or new.refused:
        certain, verdict = None, "unknown: too much noise"
    elif min(len(old.rounds), len(new.rounds)) < FEWEST:
        certain, verdict = None, f"unknown: fewer than {FEWEST} rounds"
    elif not (certain := _certain(old, new)):
        verdict = "within the spread"
    elif better is None:
        verdict = "changed"
    else:
        verdict = "better" if (new.median < old.median) == (better == "lower") else "worse"
    change = None
    if old.value and new.value is not None:
        change = new.value / old.value - 1
    return Change(
        name=new.name, unit=_unit(new), old=old.value, new=new.value, change=change, certain=certain, verdict=verdict
    )


def _certain(old: Measured, new: Measured) -> bool:
    """Tell whether the medians lie further apart than the middle halves of both runs' rounds are wide together."""
    return abs(new.median - old.median) > _width(old) + _width(new)


def _width(one: Measured) -> float:
    return one.spread * abs(one.median)


def _other_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    other = [
        f"{key} {json.dumps(before.get(key))} then, {json.dumps(now.get(key))} now"
        for key in SAME_MACHINE
        if before.get(key) != now.get(key)
    ]
    return [f"The machine was another one, so look at ratios only: {'; '.join(other)}."] if other else []


def _other_command(old: Report, new: Report) -> list[str]:
    if _arguments(old.command) == _arguments(new.command):
        return []
    return [f"The old report is of another command: {old.command}"]


def _other_pace(old: Report, new: Report) -> list[str]:
    """Say so where what is not hostd's has become faster or slower, too."""
    before = {figure.name: figure for figure in old.figures if figure.baseline}
    slower = []
    for figure in new.figures:
        was = before.get(figure.name)
        if figure.baseline and was is not None and was.unit == figure.unit and was.value and figure.value:
            slower.append(figure.value / was.value if figure.better == "lower" else was.value / figure.value)
    if not slower or abs(statistics.median(slower) - 1) < SAME_PACE:
        return []
    pace = statistics.median(slower)
    word, times = ("slower", pace) if pace > 1 else ("faster", 1 / pace)
    return [f"By its baselines the machine was {times:.2f} times {word} than for the old report, so look at ratios."]


def _arguments(command: str) -> list[str]:
    """Return what of a command line says what is measured, not how often or where the report goes."""
    words, kept = iter(command.split()), []
    for word in words:
        if word in ELSEWHERE:
            next(words, None)
        elif word != "--json" and not word.startswith(tuple(f"{option}=" for option in ELSEWHERE)):
            kept.append(word)
    return kept
