"""Several measurements, round by round: each round has all of them one after the other, so all meet the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Tell = Callable[[str], None]
"""says one line of progress"""


class Step(str):
    """A line of progress that knows how much is done: `done` of `total` equal parts, before what it tells of."""

    done: int
    total: int

    def __new__(cls, line: str, done: int, total: int) -> Step:
        step = super().__new__(cls, line)
        step.done, step.total = done, total
        return step


@dataclass(frozen=True)
class Measurement:
    """Something that gives figures each time it is run: by name, in the units that the benchmark knows."""

    name: str
    run: Callable[[], Mapping[str, float]]


def interleave(
    measurements: Sequence[Measurement], rounds: int, tell: Tell, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run all measurements `rounds` times; return the values of each figure by name, in the order of the rounds.

    Each second round goes backwards, so that what one leaves behind (caches, clocks, heat) does not always meet the
    same other. With `warm_up` a round goes before, which is not counted.
    """
    found: dict[str, list[float]] = {}
    first = 0 if warm_up else 1
    done, total = 0, len(measurements) * (rounds + 1 - first)
    for number in range(first, rounds + 1):
        for measurement in measurements if number % 2 else reversed(measurements):
            line = f"round {number} of {rounds}: {measurement.name}" if number else f"warm-up: {measurement.name}"
            tell(Step(line, done, total))
            done += 1
            values = measurement.run()
            if number:
                for name, value in values.items():
                    found.setdefault(name, []).append(value)
    return found
