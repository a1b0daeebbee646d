"""Kernel images: Debian's own, or a file."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from hostd.boot.linux.kernel import Kernel, open_kernel
from hostd.images import packages, store
from hostd.images.errors import ImageStoreError
from hostd.images.folders import cache, tell
from hostd.images.initramfs import modules_of


def add(source: str, name: str | None = None) -> tuple[store.Image, Kernel]:
    """Keep the kernel `source`, "debian", "debian-cloud" or a file, as the image `name`; return it, checked.

    Raises ImageStoreError, ImageError and OSError.
    """
    if source in packages.KERNELS:
        package = packages.kernel_package(source)
        folder = packages.fetch(package)
        about = {"package": folder.name, "modules": str(packages.modules_folder(folder))}
        return _keep(packages.vmlinuz(folder), name or source, about)
    path = Path(source).absolute()
    if not path.is_file():
        known = " and ".join(packages.KERNELS)
        raise ImageStoreError(f"kernel {source!r}: there is no such file, and it is none of Debian's ({known})")
    found = modules_of(open_kernel(path, cache("kernels")))
    return _keep(path, name or path.name, {"modules": str(found) if found else None})


def opened(name_or_path: str) -> Kernel:
    """Return the kernel image, or the kernel's file, of that name. Raises ImageStoreError, ImageError and OSError."""
    path = Path(name_or_path)
    if "/" not in name_or_path or not path.is_file():
        path = store.resolve(name_or_path, "kernel").path
    return open_kernel(path.absolute(), cache("kernels"))


def _keep(path: Path, name: str, about: dict[str, Any]) -> tuple[store.Image, Kernel]:
    digest = hashlib.sha256(path.read_bytes() + repr(about).encode()).hexdigest()

    def write(made: Path) -> dict[str, Any]:
        tell(f"checking {path}")
        shutil.copyfile(path, made)
        # Not of the copy, which is about to move: what was unpacked would be found by no one.
        return {"version": open_kernel(path, cache("kernels")).version, "source": str(path), **about}

    image = store.add(name, "kernel", digest, write)
    return image, open_kernel(image.path, cache("kernels"))
