"""The Python of a Linux guest: what of this project goes into its root file system, and how."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import shm
from guestlib.build import BuildError

SHM = Path(shm.__file__).resolve().parent
GUESTLIB = Path(__file__).resolve().parent.parent
HERE_ONLY = {"_build.py", "build.py", "stage.py"}
"""modules that need a compiler, or what they made"""

PACKAGES = ("python3-minimal", "python3-cffi-backend", "python3-msgpack")
"""Debian packages that the staged modules need: the interpreter, cffi's run time, and msgpack for objects"""
FOLDER = "/usr/lib/python3/dist-packages"
"""where Debian's Python looks for modules"""


def tree() -> dict[str, Path]:
    """Return the files to put into the guest's folder of Python modules: where, and from where.

    The extension uses Python's stable ABI only (cffi sees to it), so it goes in by the name that any CPython 3 loads,
    whichever built it. Raises BuildError if it has not been built.
    """
    extensions = sorted(SHM.glob("_shm.*.so")) or sorted(SHM.glob("_shm.so"))
    if not extensions:
        raise BuildError(f"{SHM}: its extension is not built; run make install")
    found = {"shm/_shm.abi3.so": max(extensions, key=lambda path: path.stat().st_mtime)}
    for base, folders in ((SHM, (SHM,)), (GUESTLIB, (GUESTLIB, GUESTLIB / "linux"))):
        for folder in folders:
            for path in sorted(folder.glob("*.py")):
                if path.name not in HERE_ONLY:
                    found[f"{base.name}/{path.relative_to(base)}"] = path
    return found


def stage(folder: Path) -> None:
    """Copy the files of `tree` below `folder`, with modes and times that are always the same. Raises OSError."""
    for name, source in tree().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)
        os.utime(target, (0, 0))
