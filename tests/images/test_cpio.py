"""cpio archives, read back by GNU cpio and by busybox's."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from hostd.images.cpio import Archive


def made() -> bytes:
    archive = Archive()
    archive.directory("a")
    archive.directory("a")
    archive.file("a/text", b"hello\n", 0o640)
    archive.file("a/empty", b"")
    archive.file("a/odd", bytes(range(251)))
    archive.symlink("a/link", "text")
    return archive.finish()


@pytest.mark.parametrize("program", [["cpio"], ["busybox", "cpio"]])
def test_unpacks(tmp_path: Path, program: list[str]) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not here")
    subprocess.run([*program, "-i"], input=made(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a/text").read_bytes() == b"hello\n"
    assert stat.S_IMODE((tmp_path / "a/text").stat().st_mode) == 0o640
    assert (tmp_path / "a/odd").read_bytes() == bytes(range(251))
    assert (tmp_path / "a/link").readlink() == Path("text")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["empty", "link", "odd", "text"]


def test_the_same_things_make_the_same_bytes() -> None:
    assert made() == made()
    assert len(made()) % 4 == 0


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../../etc", ".."])
def test_paths_stay_inside(path: str) -> None:
    with pytest.raises(ValueError, match="no path inside"):
        Archive().file(path, b"")
