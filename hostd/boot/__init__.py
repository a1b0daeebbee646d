"""Boot: what lies in a guest's memory before its first instruction."""

from hostd.boot.errors import ImageError

__all__ = ["ImageError"]
