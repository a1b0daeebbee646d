"""What can keep a cluster from running."""

from __future__ import annotations


class SupervisorError(Exception):
    """A cluster that can't be started or reached; the text is one sentence."""


class ClusterRunningError(SupervisorError):
    """The cluster runs already."""


class NoSuchClusterError(SupervisorError):
    """No cluster of that name runs."""
