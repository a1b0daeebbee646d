"""Folders as file systems: checked by the file systems' own tools, and the same bytes for the same folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hostd.images import ImageStoreError, file_systems

TIME = 1_700_000_000
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NEEDS = {"ext4": ("mke2fs", "debugfs", "e2fsck"), "erofs": ("mkfs.erofs", "dump.erofs", "fsck.erofs")}


@pytest.fixture(params=["ext4", "erofs"])
def kind(request: pytest.FixtureRequest) -> str:
    for tool in NEEDS[request.param]:
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool} is not here")
    return str(request.param)


def fill(folder: Path, names: list[str]) -> None:
    """Make the same tree, its files in the order of `names`."""
    (folder / "etc").mkdir(parents=True)
    for name in names:
        (folder / "etc" / name).write_bytes(name.encode() * 2000)

    (folder / "etc/a").chmod(0o4755)
    (folder / "link").symlink_to("etc/a")
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.utime(os.path.join(place, name), (TIME, TIME), follow_symlinks=False)
    os.utime(folder, (TIME, TIME))


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True, env=os.environ | {"PATH": PATH}
    )
    return done.stdout


def test_the_same_folder_made_twice_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    names = [*"abcdefgh"]
    fill(tmp_path / "one", names)
    time.sleep(1.1)  # When a file was copied here must not tell: change times are whole seconds apart.
    fill(tmp_path / "two", names)
    for which in ("one", "two"):
        file_systems.write(tmp_path / which, tmp_path / f"{which}.{kind}", kind, None, TIME)
    assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_what_is_in_it(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "tree", [*"ab"])
    image = tmp_path / "image"
    file_systems.write(tmp_path / "tree", image, kind, None, TIME)
    assert image.stat().st_size % file_systems.BLOCK == 0
    if kind == "ext4":
        run("e2fsck", "-fn", image)
        run("debugfs", "-R", f"dump /etc/b {tmp_path / 'b'}", image)
        assert (tmp_path / "b").read_bytes() == b"b" * 2000
        assert "Mode:  04755" in run("debugfs", "-R", "stat /etc/a", image)
        assert 'Fast link dest: "etc/a"' in run("debugfs", "-R", "stat /link", image)
        said = run("dumpe2fs", "-h", image)
        assert "Block size:               4096" in said
        assert file_systems.UUID in said
    else:
        run("fsck.erofs", image)
        assert file_systems.UUID in run("dump.erofs", "-s", image)


def test_an_ext4_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    if shutil.which("mke2fs", path=PATH) is None:
        pytest.skip("mke2fs is not here")
    fill(tmp_path / "tree", [*"ab"])
    file_systems.write(tmp_path / "tree", tmp_path / "image", "ext4", 64 << 20, TIME)
    assert (tmp_path / "image").stat().st_size == 64 << 20


def test_a_folder_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    if shutil.which("mke2fs", path=PATH) is None:
        pytest.skip("mke2fs is not here")
    fill(tmp_path / "tree", [*"ab"])
    (tmp_path / "tree/large").write_bytes(os.urandom(24 << 20))
    with pytest.raises(ImageStoreError, match="mke2fs failed: ") as caught:
        file_systems.write(tmp_path / "tree", tmp_path / "image", "ext4", 20 << 20, TIME)
    assert "\n" not in str(caught.value)
