"""`hostd image` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostd.cli import main
from hostd.images import store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def add(name: str, kind: str) -> store.Image:
    def make(path: Path) -> dict[str, object]:
        path.write_bytes(b"x" * 2048)
        return {"format": "erofs", "packages": 7, "modules": ["a", "b"], "version": "6.1.0"}

    return store.add(name, kind, "key", make)


def test_ls_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "ls"]) == 0
    assert "`hostd image kernel debian-cloud` makes the first" in capsys.readouterr().out
    for name, kind in (("debian", "rootfs"), ("cloud", "kernel"), ("6.1.0", "initramfs")):
        add(name, kind)
    assert main(["image", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["kernel", "cloud"],
        ["initramfs", "6.1.0"],
        ["rootfs", "debian"],
    ]
    assert "erofs, 7 packages" in lines[3]
    assert "2 modules" in lines[2]


@pytest.mark.parametrize("words", [["ls", "--json"], ["--json", "ls"]])
def test_ls_as_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    image = add("debian", "rootfs")
    assert main(["image", *words]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found == image.describe()


def test_rm_takes_names_and_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("debian", "rootfs"), ("debian", "kernel"), ("web", "rootfs")):
        add(name, kind)
    assert main(["image", "rm", "kernel/debian", "web"]) == 0
    assert capsys.readouterr().out == "removed kernel debian, rootfs web\n"
    assert [image.kind for image in store.images()] == ["rootfs"]
    assert main(["image", "rm", "web"]) == 1
    assert capsys.readouterr().err == "hostd image: there is no image 'web'; `hostd image ls` lists them\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kernel", "/nosuch"], "kernel '/nosuch': there is no such file, and it is none of Debian's"),
        (
            ["initramfs", "nosuch"],
            "there is no kernel image 'nosuch'; `hostd image kernel FILE --name nosuch` makes it",
        ),
        (["rootfs", "debian", "--packages", "A"], "'A' is no name of a Debian package"),
        (["rootfs", "debian", "--size", "much"], "'much' is no size"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_file_that_is_no_kernel_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    path.write_text("no kernel\n" * 100)
    assert main(["image", "kernel", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert store.images() == []
