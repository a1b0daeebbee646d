"""Baselines: each gives a figure and leaves nothing; what can't be measured is a sentence."""

import os

import pytest

from hostd.bench import baselines


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("host_rtt", "host_rtt_ns_p50"),
        ("host_ring_rtt", "host_ring_rtt_ns_p50"),
        ("python_channel", "python_channel_rtt_ns_p50"),
        ("python_pipe", "python_pipe_rtt_ns_p50"),
        ("unix_socket", "unix_socket_rtt_ns_p50"),
        ("eventfd", "eventfd_rtt_ns_p50"),
    ],
)
def test_a_baseline_is_a_positive_figure_and_leaves_nothing(name, figure):
    figures = baselines.run([name], [0, max(os.sched_getaffinity(0))])
    assert list(figures) == [figure]
    assert figures[figure] > 0
    if name == "python_channel":  # The others make no region, and other tests' may be there.
        assert not [entry for entry in os.listdir("/dev/shm") if entry.startswith("hostd.bench.python-")]


def test_an_unknown_baseline_is_named():
    with pytest.raises(
        baselines.BaselineError, match="'nonsense' is unknown; there are eventfd, host_ring_rtt, host_rtt"
    ):
        baselines.run(["nonsense"], [0])


def test_a_processor_that_is_not_there_is_a_sentence():
    with pytest.raises(baselines.BaselineError, match="Invalid argument"):
        baselines.run(["host_rtt"], [4000, 4001])
