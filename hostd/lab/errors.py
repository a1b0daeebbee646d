"""What can go wrong with the lab: one sentence that says what to do."""

from __future__ import annotations


class LabError(Exception):
    """The lab can't be started, or ended before its command did."""
