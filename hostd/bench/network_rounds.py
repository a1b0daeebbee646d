"""Rounds taken at the same distance: a virtual machine's processors may be moved, and lie near each other or far apart.

How long a cache line takes from one to the other bounds whatever forwards, some figures more than others. So figures
of rounds at different distances must not be mixed. The rate of a loop that copies, in turn with all else, tells.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hostd.bench.rounds import Tell

SAME = 1.5
"""rates that differ by less than this factor were taken at the same distance"""
TRIES = 3
"""times as many rounds as wanted, at most, until there are as many at one distance"""


@dataclass(frozen=True)
class Round:
    """Figures of one round by name, and the sensor's rates in the course of it."""

    figures: Mapping[str, float]
    sensor: Sequence[float]

    @property
    def distance(self) -> float:
        """Time that the sensor took: the median."""
        return 1 / statistics.median(self.sensor)

    @property
    def steady(self) -> bool:
        """Whether the distance was the same all the time, but for one piece that was disturbed."""
        rates = sorted(self.sensor)
        return len(rates) < 3 or rates[-2] < SAME * rates[1]


@dataclass(frozen=True)
class Rounds:
    """Rounds at one distance, those at others, and how many were none, as the distance changed meanwhile."""

    kept: Sequence[Round]
    others: Sequence[Round]
    unsteady: int

    def figures(self) -> dict[str, list[float]]:
        """Return the figures of the rounds that were kept, by name."""
        return {name: [one.figures[name] for one in self.kept] for name in self.kept[0].figures}


def take(run: Callable[[], Round], count: int, tell: Tell) -> Rounds:
    """Take rounds until `count` of them were at one distance, or TRIES times as many were taken; a warm-up goes before.

    Where none was steady, all count.
    """
    tell("warm-up")
    run()
    steady: list[Round] = []
    unsteady: list[Round] = []
    for number in range(1, TRIES * count + 1):
        tell(f"round {number}, of which {count} are wanted at the same distance of the processors")
        one = run()
        (steady if one.steady else unsteady).append(one)
        if len(group(steady)) >= count:
            break
    if not steady:
        return Rounds(unsteady, [], 0)
    kept = group(steady)
    return Rounds(kept, [one for one in steady if one not in kept], len(unsteady))


def group(rounds: Sequence[Round]) -> list[Round]:
    """Return the most rounds that were at the same distance; of two as large groups the nearer."""
    best: list[Round] = []
    for one in sorted(rounds, key=lambda one: one.distance):
        near = [other for other in rounds if one.distance <= other.distance < SAME * one.distance]
        if len(near) > len(best):
            best = near
    return best
