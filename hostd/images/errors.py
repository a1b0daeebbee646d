"""What can go wrong with images: each one sentence that says what to do."""

from __future__ import annotations


class ImageStoreError(Exception):
    """An image can't be had or made."""
