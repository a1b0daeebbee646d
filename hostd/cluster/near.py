"""What somebody may have meant by a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(key: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the one of `known` that looks like `key`, else what there is."""
    known = list(known)
    similar = difflib.get_close_matches(key, known, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return f"; there are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}" if known else ""
