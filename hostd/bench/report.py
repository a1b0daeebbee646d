"""What a benchmark found: figures, each with the value of every round, and ratios of figures of the same run.

A shared machine is noisy, so a figure is never one number: it is the median of its rounds, and their spread says
whether the median means anything. Ratios are taken round by round, between measurements that ran one after the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, computed_field

MOST_SPREAD = 0.5
"""a figure whose middle half of rounds spreads over more than this part of the median is not printed"""
Better = Literal["lower", "higher"]


def spread(values: Sequence[float]) -> float:
    """Return how far the middle half of `values` lies apart, as a part of their median (0: all the same)."""
    median = statistics.median(values)
    if len(values) < 3 or not median:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / abs(median)


class _Measured(BaseModel):
    """Values of several rounds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    how: str
    """one sentence: what was done, and how it was counted"""
    rounds: tuple[float, ...] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spread(self) -> float:
        """The middle half of the rounds, as a part of the median."""
        return spread(self.rounds)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def refused(self) -> str | None:
        """Why the median says nothing, in one sentence; None where it does."""
        if self.spread <= MOST_SPREAD:
            return None
        return (
            f"its rounds lie between {min(self.rounds):.3g} and {max(self.rounds):.3g}, the middle half over "
            f"{self.spread:.0%} of the median: run it again on a quieter machine, or with more rounds"
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def value(self) -> float | None:
        """The median of the rounds; None where `refused` says why not."""
        return None if self.refused else self.median

    @property
    def median(self) -> float:
        """The median of the rounds, whatever it is worth."""
        return statistics.median(self.rounds)


class Figure(_Measured):
    """One figure, in `unit` (ns, s, bytes, bytes/s, messages/s, frames/s, ...)."""

    unit: str
    better: Better
    baseline: bool = False
    """something other than hostd, to hold hostd's figures against"""


class Ratio(_Measured):
    """One figure over another, with what it should be."""

    of: str
    to: str
    target: float | None = None
    at_most: bool = True
    """whether `target` is the most it may be, or the least"""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without a target or a value."""
        if self.target is None or self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


class Series(BaseModel):
    """Points of one line in a chart: figure against something that was varied, such as size or guests."""

    model_config = ConfigDict(frozen=True)

    chart: str
    """lines of the same chart are drawn together"""
    line: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    log: bool = False
    """both axes logarithmic"""


class Report(BaseModel):
    """Everything that one run of a benchmark found."""

    form: Literal[1] = 1
    """of the JSON"""
    bench: str
    command: str
    taken: str = ""
    """when the run ended: ISO 8601, UTC"""
    machine: dict[str, Any]
    cluster_files: dict[str, str] = {}
    """the text of each cluster file that was run, by name"""
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    series: list[Series] = []
    notes: list[str] = []
    """what a reader must know, a sentence each: what was left out and why, what bounds a figure"""

    def add(
        self,
        name: str,
        rounds: Sequence[float],
        unit: str,
        how: str,
        *,
        better: Better = "lower",
        baseline: bool = False,
    ) -> Figure:
        """Add a figure and return it."""
        figure = Figure(name=name, rounds=tuple(rounds), unit=unit, how=how, better=better, baseline=baseline)
        self.figures.append(figure)
        return figure

    def compare(
        self, name: str, of: Figure, to: Figure, *, at_most: float | None = None, at_least: float | None = None
    ) -> Ratio:
        """Add the ratio of two figures that have the same rounds and return it."""
        pairs = zip(of.rounds, to.rounds, strict=True)
        ratio = Ratio(
            name=name,
            how=f"{of.name} / {to.name}, round by round",
            rounds=tuple(one / other for one, other in pairs),
            of=of.name,
            to=to.name,
            target=at_most if at_most is not None else at_least,
            at_most=at_least is None,
        )
        self.ratios.append(ratio)
        return ratio

    def figure(self, name: str) -> Figure:
        """Return the figure called `name`. Raises KeyError."""
        return _by_name(self.figures)[name]

    def ratio(self, name: str) -> Ratio:
        """Return the ratio called `name`. Raises KeyError."""
        return _by_name(self.ratios)[name]


Named = TypeVar("Named", bound=_Measured)


def _by_name(things: Sequence[Named]) -> Mapping[str, Named]:
    return {thing.name: thing for thing in things}
