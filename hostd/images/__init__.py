"""Images that guests boot: kernels, initramfs archives, root file systems."""

from __future__ import annotations

from hostd.images.errors import ImageStoreError

__all__ = ["ImageStoreError"]
