"""Samples: their middle, their percentiles, and what coordinated omission hid, as HdrHistogram would have it."""

import random

import pytest

from hostd.bench.samples import Samples


def test_the_middle_is_the_mean_of_the_middle_half():
    assert Samples([1, 1, 10, 20, 30, 40, 1000, 100000]).middle() == 25
    assert Samples([7]).middle() == 7
    # Half of the samples at 90 and at 100: a median would be one of the two.
    assert Samples([90] * 500 + [100] * 500).middle() == 95


def test_the_median_is_the_median():
    assert Samples([1, 2, 2, 90, 100]).median() == 2
    assert Samples([1, 2]).median() == 1.5


def test_a_stall_does_not_move_the_middle():
    assert Samples([100] * 999 + [10**9]).middle() == 100


def test_percentiles_are_those_of_the_samples():
    histogram = Samples(range(1, 1001)).histogram()
    assert histogram.get_total_count() == 1000
    assert histogram.get_value_at_percentile(50) == 500
    assert histogram.get_value_at_percentile(99) == 990
    assert histogram.get_max_value() == 1000


def test_a_stall_stands_for_those_who_would_have_waited_meanwhile():
    histogram = Samples([10] * 99 + [1000]).histogram(10)
    # 1000 itself, and the 99 questions that would have been asked 10, 20, ... later: 990 down to 10.
    assert histogram.get_total_count() == 199
    assert histogram.get_value_at_percentile(50) == pytest.approx(10, abs=10)
    assert histogram.get_value_at_percentile(75) == pytest.approx(500, rel=0.03)


def one_by_one(values, interval):
    """The correction as HdrHistogram's Java original does it."""
    histogram = Samples(values).histogram()
    for value in values:
        left = value - interval
        while left >= interval:
            histogram.record_value(left)
            left -= interval
    return histogram


def test_the_correction_is_the_same_as_one_by_one():
    rng = random.Random(4)
    values = [rng.choice((90, 100, 110, 5_000, 123_456, 7_654_321)) for _ in range(50)]
    for interval in (100, 77, 5_000):
        slow, quick = one_by_one(values, interval), Samples(values).histogram(interval)
        assert quick.get_total_count() == slow.get_total_count()
        for percentile in (1, 25, 50, 75, 90, 99, 99.9, 100):
            assert quick.get_value_at_percentile(percentile) == slow.get_value_at_percentile(percentile)


def test_a_curve_ends_where_the_samples_do():
    samples = Samples(range(1, 1001))
    x, y = samples.curve(samples.histogram())
    assert x[0] == 2
    assert x[-1] == 500
    assert y[0] == 500
    assert list(y) == sorted(y)


def test_samples_add_up():
    samples = Samples([1, 2])
    samples.add(Samples([2, 3]))
    assert samples.count == 4
    assert samples.counts == {1: 1, 2: 2, 3: 1}
