"""Debian packages fetched by an apt that is made up: what is asked for, kept, and said when it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hostd.images import packages
from hostd.images.errors import ImageStoreError

APT_CACHE = """#!/bin/sh
case "$1 $2" in
"depends linux-image-amd64") echo "linux-image-amd64"; echo "  Depends: linux-image-6.1.0-7-amd64" ;;
"depends linux-image-cloud-amd64") echo "linux-image-cloud-amd64" ;;
"policy linux-image-6.1.0-7-amd64") printf 'x:\\n  Installed: (none)\\n  Candidate: 1:6.1.7-1\\n' ;;
*) printf 'x:\\n  Installed: (none)\\n  Candidate: (none)\\n' ;;
esac
"""
APT_GET = """#!/bin/sh
echo "$@" >> "$LOG"
[ -z "$FAIL" ] || { echo "W: a warning" >&2; echo "E: Failed to fetch http://x  Temporary failure" >&2; exit 100; }
cp "$DEB" ./linux-image_1%3a6.1.7-1_amd64.deb
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an apt first on the PATH that knows one package; return the log of its downloads."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    made = tmp_path / "package"
    (made / "DEBIAN").mkdir(parents=True)
    (made / "DEBIAN/control").write_text(
        "Package: linux-image-6.1.0-7-amd64\nVersion: 1:6.1.7-1\n"
        "Architecture: amd64\nMaintainer: a <a@b>\nDescription: x\n"
    )
    (made / "boot").mkdir()
    (made / "boot/vmlinuz-6.1.0-7-amd64").write_text("kernel")
    (made / "lib/modules/6.1.0-7-amd64").mkdir(parents=True)
    deb = tmp_path / "linux.deb"
    subprocess.run(["dpkg-deb", "-b", str(made), str(deb)], check=True, capture_output=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("DEB", str(deb))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "log"


def test_fetched_once(apt: Path) -> None:
    name = packages.kernel_package("debian")
    assert name == "linux-image-6.1.0-7-amd64"
    folder = packages.fetch(name)
    assert folder == packages.fetch(name)
    assert packages.vmlinuz(folder).read_text() == "kernel"
    assert packages.modules_folder(folder).name == "6.1.0-7-amd64"
    assert len(apt.read_text().splitlines()) == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", folder.name]


def test_what_is_at_hand_needs_no_apt(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packages.at_hand("debian")
    monkeypatch.setenv("PATH", "/nowhere")
    assert packages.at_hand("debian") == folder
    with pytest.raises(ImageStoreError, match="apt-cache is missing"):
        packages.at_hand("debian-cloud")


def test_a_failed_download_leaves_nothing(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ImageStoreError, match=r"Failed to fetch .* is there a network"):
        packages.fetch("linux-image-6.1.0-7-amd64")
    assert [path.name for path in (apt.parent / "cache/hostd/packages").iterdir()] == [".lock"]


def test_unknown(apt: Path) -> None:
    with pytest.raises(ImageStoreError, match="nosuch: is not to be had from apt; run `apt-get update`"):
        packages.fetch("nosuch")
    with pytest.raises(ImageStoreError, match="depends on no kernel here"):
        packages.kernel_package("debian-cloud")
