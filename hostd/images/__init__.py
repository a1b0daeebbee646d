"""Images that guests boot: kernels, initramfs archives, root file systems (docs/images.md)."""

from __future__ import annotations

from hostd.images.errors import ImageStoreError
from hostd.images.initramfs import ensure_initramfs
from hostd.images.store import Image, resolve

__all__ = ["Image", "ImageStoreError", "ensure_initramfs", "resolve"]
