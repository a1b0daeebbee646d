"""Root file systems, with stand-ins for the tools that need the network."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from guestlib.linux import build, stage
from hostd.images import ImageStoreError, file_systems, folders, rootfs, store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = tmp_path / "program"
    program.write_bytes(b"guestctl")
    monkeypatch.setattr(build, "binaries", lambda folder: build.Binaries(program, program, program))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path / "cache/hostd"


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a stand-in for a program first into the PATH."""
    folder = tmp_path / "tools"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)
    if str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def debian(tmp_path: Path) -> Path:
    """Make the archive that mmdebstrap would: a tree that differs from the last one in what is no part of it."""
    root = tmp_path / f"tree-{time.monotonic_ns()}"
    for name in ("usr/local/bin", "usr/lib/python3/dist-packages", "etc", "var/lib/dpkg", "var/log", "var/cache"):
        (root / name).mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text("Package: a\nStatus: install ok installed\n" * 2)
    (root / "var/log/dpkg.log").write_text(str(time.monotonic_ns()))
    (root / "etc/machine-id").write_text(str(time.monotonic_ns()))
    with tarfile.open(tmp_path / "debian.tar", "w") as archive:
        archive.add(root, ".")
    return tmp_path / "debian.tar"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "_compile", lambda root: None)
    tool(
        tmp_path,
        monkeypatch,
        "mmdebstrap",
        f'#!/bin/sh\necho "I: installing..." >&2\nfor last; do :; done\ncp {debian(tmp_path)} "$last"\n'
        f'echo "$@" >> {tmp_path}/calls\n',
    )


def test_a_root_has_guestlib_and_nothing_of_its_making(
    tmp_path: Path, tools: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def look(root: Path, path: Path, kind: str, size: int | None, seconds: int) -> None:
        modules = root / stage.FOLDER.lstrip("/")
        seen["modules"] = {str(found.relative_to(modules)) for found in modules.rglob("*") if found.is_file()}
        seen["guestctl"] = (root / "usr/local/bin/guestctl").read_bytes()
        seen["machine-id"] = (root / "etc/machine-id").read_bytes()
        seen["log"] = list((root / "var/log").iterdir())
        seen["times"] = {found.lstat().st_mtime for found in [root, *root.rglob("*")]}
        seen["kind"] = kind, size
        path.write_bytes(b"image")

    monkeypatch.setattr(file_systems, "write", look)
    image = rootfs.make("web", ["curl"], "ext4", 1 << 20)
    assert image.path.read_bytes() == b"image"
    assert image.about["packages"] == 2
    assert set(stage.tree()) <= seen["modules"]  # type: ignore[operator]
    assert seen | {"modules": 0} == {
        "modules": 0,
        "guestctl": b"guestctl",
        "machine-id": b"",
        "log": [],
        "times": {float(rootfs.TIME)},
        "kind": ("ext4", 1 << 20),
    }
    assert "--include=curl,iproute2,iputils-ping," in (tmp_path / "calls").read_text()
    assert "installing" in capsys.readouterr().err


def test_packages_are_installed_once_for_several_images(
    tmp_path: Path, tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "write", lambda root, path, *_: path.write_bytes(b"image"))
    first = rootfs.make("one", [], "ext4")
    rootfs.make("two", [], "erofs")
    assert rootfs.make("one", [], "ext4") == first
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert rootfs.make("one", [], "ext4", fresh=True) != first
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_what_mmdebstrap_says_is_the_reason(
    tmp_path: Path, cache: Path, tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = '#!/bin/sh\necho "E: Unable to locate package nosuch" >&2\necho "I: cleaning" >&2\nexit 1\n'
    tool(tmp_path, monkeypatch, "mmdebstrap", script)
    with pytest.raises(ImageStoreError, match="Unable to locate package nosuch") as caught:
        rootfs.make("web", ["nosuch"], "ext4")
    assert "\n" not in str(caught.value)
    assert store.images() == []
    left = [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []


def test_a_tool_that_is_missing_comes_with_apt_s_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(ImageStoreError, match="mmdebstrap is missing: apt-get install mmdebstrap"):
        rootfs.make("web", [], "ext4")


def test_it_is_made_by_root(monkeypatch: pytest.MonkeyPatch, tools: None) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageStoreError, match="made by root: sudo env XDG_CACHE_HOME="):
        rootfs.make("web", [], "erofs")


@pytest.mark.parametrize("package", ["", "-o", "a b", "A", "a;b"])
def test_packages_that_are_none(package: str) -> None:
    with pytest.raises(ImageStoreError, match="is no name of a Debian package"):
        rootfs.make("web", [package], "ext4")


def test_an_erofs_has_no_size() -> None:
    with pytest.raises(ImageStoreError, match="leave out --size"):
        rootfs.make("web", [], "erofs", 1 << 20)


def test_something_that_appears_is_removed_when_it_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with folders.appearing(tmp_path / "x") as made:
            made.mkdir()
            (made / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.glob("x")) == []
    assert list(tmp_path.glob(".making*")) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f"{folders.MAKING}x/deep").mkdir(parents=True)
    with folders.locked(tmp_path):
        assert list(tmp_path.glob(f"{folders.MAKING}*")) == []
