"""What can be wrong with a cluster file."""

from __future__ import annotations


class ClusterFileError(Exception):
    """A cluster file that cannot be used; the text is one sentence naming the file and the key."""
