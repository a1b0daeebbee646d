"""Where images are kept, and making things there that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hostd.images.errors import ImageStoreError

MAKING = ".making-"


def cache(name: str) -> Path:
    """Return the folder `name` of hostd's cache, made if it is missing. Raises ImageStoreError."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "hostd", name)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise ImageStoreError(f"{folder}: cannot be made: {error.strerror}; set XDG_CACHE_HOME") from None
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make things in `folder`."""
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for rest in folder.glob(f"{MAKING}*"):  # Of one that was killed: nobody else is at it.
            shutil.rmtree(rest, ignore_errors=True)
        yield


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give the path of a file or folder to make, which becomes `path` at the end, or nothing if anything fails."""
    folder = Path(tempfile.mkdtemp(prefix=MAKING, dir=path.parent))
    try:
        made = folder / path.name
        yield made
        os.replace(made, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tell(sentence: str) -> None:
    """Show progress."""
    print(sentence, file=sys.stderr, flush=True)
