"""The lab: a throw-away Linux machine with a full KVM, on any host (docs/lab.md)."""

from __future__ import annotations

from hostd.lab.errors import LabError
from hostd.lab.run import run

__all__ = ["LabError", "run"]
