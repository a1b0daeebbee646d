"""What a guest shows: its frame buffer, taken from its memory while it runs."""

from __future__ import annotations
