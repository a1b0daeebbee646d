"""A folder as a file system's image, without mounting anything; the same bytes for the same folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from hostd.images.errors import ImageStoreError

BLOCK = 4096
"""bytes: the size of a page, without which there is no DAX"""
UUID = "686f7374-6400-4000-8000-726f6f746673"
INODE_ROOM, BLOCK_ROOM = 1024, 16 << 20
"""inodes and bytes left free for a root that is written"""


def write(folder: Path, path: Path, kind: str, size: int | None, seconds: int) -> None:
    """Write `folder` as an "ext4" of `size` bytes (default: little more than it takes) or an "erofs" to `path`.

    `seconds` is the time of its making, and of all inodes. Raises ImageStoreError.
    """
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": str(seconds),
        "E2FSPROGS_FAKE_TIME": str(seconds),
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    }
    if kind == "erofs":
        # Not compressed: only then can it be mapped (DAX).
        _run(["mkfs.erofs", "-T", str(seconds), "-U", UUID, str(path), str(folder)], environment)
        # An image on pmem must be whole pages.
        os.truncate(path, -(-path.stat().st_size // BLOCK) * BLOCK)
    else:
        _ext4(folder, path, size, seconds, environment)


def _ext4(folder: Path, path: Path, size: int | None, seconds: int, environment: dict[str, str]) -> None:
    blocks, inodes = _needs(folder)
    inodes += INODE_ROOM
    if size is None:
        size = (blocks * BLOCK + BLOCK_ROOM + inodes * 256) * 51 // 50
    size = -(-size // (1 << 20)) << 20
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-N", str(inodes), "-m", "0", "-U", UUID]
    command += ["-J", "size=8", "-E", f"hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,nodiscard", "-L", "root"]
    _run([*command, "-d", str(folder), str(path), f"{size // 1024}k"], environment)
    # mke2fs takes over when a file was changed last, in whatever way; that is when it was copied here.
    used = _inodes(path, environment)
    fields = [f"sif <{inode}> {field} @{seconds}" for inode in used for field in ("ctime", "crtime", "atime")]
    fields += [f"sif <{inode}> {field}_extra 0" for inode in used for field in ("ctime", "crtime", "atime", "mtime")]
    _run(["debugfs", "-w", "-f", "-", str(path)], environment, "\n".join(fields) + "\n")


def _inodes(path: Path, environment: dict[str, str]) -> range:
    """Return the inodes that files have: they are given out from the first one on."""
    said = _run(["dumpe2fs", "-h", str(path)], environment)
    values = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    return range(int(values["First inode"]), int(values["Inode count"]) - int(values["Free inodes"]) + 1)


def _needs(folder: Path) -> tuple[int, int]:
    """Return how many blocks and inodes the content of `folder` takes."""
    blocks, inodes = 0, 0
    for place, folders, files in os.walk(folder):
        inodes += len(folders) + len(files)
        blocks += len(folders)
        for name in files:
            # A long list of extents takes a block of its own.
            blocks += -(-os.lstat(os.path.join(place, name)).st_size // BLOCK)
    return blocks, inodes


def _run(command: list[str], environment: dict[str, str], typed: str = "") -> str:
    done = subprocess.run(command, env=environment, input=typed, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line] or ["no reason given"]
        raise ImageStoreError(f"{command[0]} failed: {lines[-1]}")
    return done.stdout
