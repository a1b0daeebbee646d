"""The images that are kept: each a file and, beside it, what is known of it, which makes it an image."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hostd.images.errors import ImageStoreError
from hostd.images.folders import appearing, cache, locked
from hostd.images.packages import KERNELS

KINDS = ("kernel", "initramfs", "rootfs")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True)
class Image:
    """One image. `key` is a digest of all that it was made of, `about` what else there is to say."""

    name: str
    kind: str
    path: Path
    size: int
    """bytes of the file"""
    key: str
    about: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return asdict(self) | {"path": str(self.path)}


def folder(kind: str) -> Path:
    """Return the folder of the images of a kind. Raises ImageStoreError."""
    return cache(f"images/{kind}")


def find(name: str, kind: str) -> Image | None:
    """Return an image, or None if there is none of that name and kind. Raises ImageStoreError."""
    return _read(folder(kind) / f"{name}.json", kind) if NAME.fullmatch(name) else None


def resolve(name: str, kind: str) -> Image:
    """Return the image `name`. Raises ImageStoreError, which says how to make it."""
    image = find(name, kind)
    if image is None:
        raise ImageStoreError(
            f"there is no {kind} image {name!r}; "
            f"`{how_to_make(name, kind)}` makes it, and `hostd image ls` lists what is there"
        )
    return image


def how_to_make(name: str, kind: str) -> str:
    """Return the command that makes an image."""
    if kind == "kernel":
        return f"hostd image kernel {name}" if name in KERNELS else f"hostd image kernel FILE --name {name}"
    if kind == "initramfs":
        return f"hostd image initramfs KERNEL --name {name}"
    return "hostd image rootfs debian" + ("" if name == "debian" else f" --name {name}")


def images(kind: str | None = None) -> list[Image]:
    """Return all images, or those of one kind, by name."""
    found = []
    for each in (kind,) if kind else KINDS:
        paths = sorted(folder(each).glob("*.json"))
        found += [image for path in paths if (image := _read(path, each)) is not None]
    return found


def add(name: str, kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Image:
    """Return the image `name` with that `key`: the one there is, or what `make` writes to the path it is given.

    `make` returns what there is to say `about` it. Another image of that name is replaced once the new one is whole;
    its file stays until the next time. Raises ImageStoreError and what `make` raises.
    """
    if not NAME.fullmatch(name):
        raise ImageStoreError(f"{name!r} is no name of an image: letters, digits and ._+-, at most 64")
    place = folder(kind)
    with locked(place):
        old = find(name, kind)
        if old is not None and old.key == key:
            return old
        path = place / f"{name}.{key[:16]}"
        try:
            with appearing(path) as made:
                about = make(made)
                made.chmod(0o644)
            image = Image(name, kind, path, path.stat().st_size, key, about)
            with appearing(place / f"{name}.json") as made:
                made.write_text(json.dumps(image.describe(), indent=2) + "\n")
        except OSError as error:
            raise ImageStoreError(f"{path}: cannot be written: {error.strerror or error}") from None
        # Who has just looked the old one up has it for now: the next but one replaces it.
        kept = {path, old.path} if old is not None else {path}
        for file in _files(place, name) - kept:
            file.unlink(missing_ok=True)
    return image


def remove(name: str, kind: str | None = None) -> list[Image]:
    """Remove the images of that name (and kind); return them. Raises ImageStoreError if there is none."""
    gone = [image for image in images(kind) if image.name == name]
    if not gone:
        raise ImageStoreError(f"there is no image {name!r}; `hostd image ls` lists them")
    for image in gone:
        with locked(folder(image.kind)):
            (folder(image.kind) / f"{name}.json").unlink(missing_ok=True)
            for file in _files(folder(image.kind), name):
                file.unlink(missing_ok=True)
    return gone


def _files(place: Path, name: str) -> set[Path]:
    """Return the files of the image `name`: its own, and what it replaced."""
    return {path for path in place.glob(f"{name}.*") if re.fullmatch(r"[0-9a-f]{16}", path.name[len(name) + 1 :])}


def _read(path: Path, kind: str) -> Image | None:
    """Return what `path` describes; None if it is no whole image."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        image = Image(**json.loads(path.read_text()))
        # The cache may have been moved: the file is beside its description.
        file = path.parent / os.path.basename(image.path)
        if image.kind == kind and file.is_file():
            return Image(image.name, kind, file, image.size, image.key, image.about)
    return None
