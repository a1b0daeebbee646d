"""What can be wrong with what a guest is to boot."""

from __future__ import annotations


class ImageError(Exception):
    """An image that cannot be booted; the text is one sentence naming the file and the field."""
