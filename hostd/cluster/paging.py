"""What keys about where a guest's pages are say about each other."""

from __future__ import annotations

from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Guest

LEAST_CEILING, LEAST_LIMIT = 1 << 20, 16 << 20
"""bytes: below that the host would do nothing but page, and the guest's own process has no room"""

EXCLUDED = (
    ("lock", "paged", "keeps pages in memory that `paged` lets go"),
    ("lock", "ceiling", "keeps pages in memory that `ceiling` sends away"),
    ("hugetlb", "paged", "takes pages that no file but hugetlbfs has"),
    ("hugetlb", "ceiling", "takes pages that the host never pages out"),
    ("prefault", "ceiling", "touches pages that `ceiling` sends away"),
)


def check(guest: Guest) -> None:
    """Raise ClusterFileError for keys that exclude each other, or leave too little."""
    where = f"guest.{guest.name}"
    given = {key: bool(value) for key, value in guest.options.items()} | {"ceiling": guest.ceiling is not None}
    for one, other, why in EXCLUDED:
        if given[one] and given[other]:
            raise ClusterFileError(f"{where}.{one}: {why}; remove one of them")
    for key, size, least in (("ceiling", guest.ceiling, LEAST_CEILING), ("limit", guest.limit, LEAST_LIMIT)):
        if size is not None and size < least:
            raise ClusterFileError(f"{where}.{key}: {size} bytes are too few; give at least {least}")
    if guest.template is not None and given["paged"]:
        raise ClusterFileError(f"{where}.paged: its RAM is the template's, which is a file already; remove the key")
    if guest.limit is not None and guest.ceiling is not None and guest.limit <= guest.ceiling:
        raise ClusterFileError(
            f"{where}.limit: {guest.limit} bytes are not above the ceiling of {guest.ceiling}, so the guest would be "
            "killed before its pages leave; make it larger"
        )
