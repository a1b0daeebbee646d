"""Many times of one thing: their HDR histogram, percentiles, and what coordinated omission hid.

One that asks again only when it has its answer asks least while answers are slow, so its samples show slowness too
seldom (coordinated omission). Where that is corrected, a sample longer than the expected interval stands for the
questions as well that would have been asked meanwhile: they would have waited for the rest of it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hostd.bench import BenchError

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
DIGITS = 3
"""significant digits that the histogram keeps of a value"""
LONGEST_NS = 3600 * 10**9
ONE_IN = (2, 4, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000)
ENOUGH = 2
"""samples beyond the last point of a curve"""


class Samples:
    """Times in ns. Empty at first."""

    def __init__(self, times_ns: Iterable[float] = ()) -> None:
        self.counts: Counter[int] = Counter(round(time) for time in times_ns)

    def add(self, other: Samples) -> None:
        """Take the samples of `other`, too."""
        self.counts.update(other.counts)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.counts.total()

    def middle(self) -> float:
        """Return the mean of the middle half of the samples: as robust as the median, but finer than a clock's steps.

        Raises ZeroDivisionError where there are none.
        """
        low, high = self.count / 4, self.count * 3 / 4
        at, total = 0.0, 0.0
        for value in sorted(self.counts):
            inside = min(at + self.counts[value], high) - max(at, low)
            total += max(0.0, inside) * value
            at += self.counts[value]
        return total / (high - low)

    def median(self) -> float:
        """Return the median. Raises StatisticsError where there are none."""
        return statistics.median(self.counts.elements())

    def histogram(self, interval_ns: float | None = None) -> Any:
        """Return the samples' HdrHistogram, corrected for the expected interval if that is given. Raises BenchError."""
        made = _histogram()
        for time, count in self.counts.items():
            value = min(max(1, time), LONGEST_NS)
            made.record_value(value, count)
            if interval_ns:
                _record_omitted(made, value, max(1, round(interval_ns)), count)
        return made

    def curve(self, histogram: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return x and y of a percentile curve: of so many samples (x) one is slower than y."""
        x = [one_in for one_in in ONE_IN if one_in * ENOUGH <= max(self.count, 2 * ENOUGH)]
        y = [float(histogram.get_value_at_percentile(100 - 100 / one_in)) for one_in in x]
        return tuple(map(float, x)), tuple(y)


def _histogram() -> Any:
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        raise BenchError("Python has no module hdrh here; pip install 'hostd[bench]' has it") from None
    return HdrHistogram(1, LONGEST_NS, DIGITS)


def _record_omitted(histogram: Any, value: int, interval: int, count: int) -> None:
    """Record value - interval, value - 2 * interval, ... down to the interval: a bucket of the histogram at a time.

    HdrHistogram's record_corrected_value does it one by one, and a stall of a second is 10 million times 100 ns.
    """
    left = value - interval
    while left >= interval:
        bottom = max(histogram.get_lowest_equivalent_value(left), interval)
        steps = (left - bottom) // interval + 1
        histogram.record_value(left, steps * count)
        left -= steps * interval
