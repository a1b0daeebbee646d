"""A program's file: shared by all guests until one writes."""

from __future__ import annotations

import mmap

from hostd.memory.backings.base import FileBacking


class Image(FileBacking):
    """A file mapped MAP_PRIVATE: a page is the page cache's until the guest writes it, then the guest's."""

    kind = "image"
    give_back = mmap.MADV_DONTNEED
