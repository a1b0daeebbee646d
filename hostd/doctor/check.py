"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, in one line, and what to do about it (empty when nothing is to be done).

    "fail": no guest can run. "warn": something hostd can do will not work, or not well.
    """

    name: str
    status: Status
    text: str
    hint: str = ""

    def describe(self) -> dict[str, str]:
        """Return the check as plain values, for JSON."""
        return asdict(self)
