"""A kernel's modules: what each needs, and the order to load them in."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from hostd.images.errors import ImageStoreError

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def load_order(folder: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of the `wanted` modules in `folder` (lib/modules/VERSION), each behind those it needs.

    What is built into the kernel is left out. A name may have - for _. Raises ImageStoreError for an unknown one.
    """
    files = _files(folder)
    builtin = {_name(Path(line)) for line in (folder / "modules.builtin").read_text().split()}
    order: dict[str, Path] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in order or name in builtin or name in trail:
            return
        if name not in files:
            raise ImageStoreError(f"module {name}: {folder.name} has none of that name")
        for needed in depends(plain(files[name])):
            visit(needed, (*trail, name))
        order[name] = files[name]

    for name in wanted:
        visit(name.replace("-", "_"), ())
    return list(order.values())


def index(folder: Path, busybox: Path) -> None:
    """Make what modprobe looks modules up in, if it is missing: packages leave that to their installation."""
    if (folder / "modules.dep").exists():
        return
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    command = [depmod] if depmod else [str(busybox), "depmod"]
    done = subprocess.run(
        [*command, "-b", str(folder.parents[2]), folder.name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ImageStoreError(f"{folder}: {command[0]} can't index these modules: {done.stderr.strip()}")


def depends(module: bytes) -> list[str]:
    """Return the modules that a module (its ELF file) needs, as its .modinfo says."""
    # The section is strings with zeros between, and "depends=" stands at the start of one.
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    end = module.index(b"\0", start + 1)
    names = module[start + 9 : end].decode()
    return [name.replace("-", "_") for name in names.split(",") if name]


def plain(path: Path) -> bytes:
    """Return a module's ELF file, unpacked."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _files(folder: Path) -> Mapping[str, Path]:
    return {_name(path): path for path in folder.rglob("*.ko*") if path.name.endswith(SUFFIXES)}


def _name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")
