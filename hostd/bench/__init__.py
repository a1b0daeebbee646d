"""Measurements: what the hardware and the host's own means give, to hold the guests' figures against."""

from __future__ import annotations


class BenchError(Exception):
    """A figure that could not be taken; one sentence."""
