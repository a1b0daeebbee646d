"""What can keep a cluster from running."""

from __future__ import annotations

import errno


class SupervisorError(Exception):
    """A cluster that can't be started or reached; the text is one sentence."""


class ClusterRunningError(SupervisorError):
    """The cluster runs already."""


class NoSuchClusterError(SupervisorError):
    """No cluster of that name runs."""


def sentence(error: BaseException) -> str:
    """Return what `error` says as one sentence: a bare OSError's file and reason, anything else's own text."""
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.strerror:
        advice = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename or 'this host'}: {error.strerror}{advice}"
    return str(error)
