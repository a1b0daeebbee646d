"""hostd cp: files and folders into guests, out of them, and from one to another."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from office import Agent, Office, hostd  # type: ignore[import-not-found]

from hostd.agent.link import AgentError
from hostd.host import BackgroundCluster


def make_tree(folder: Path) -> None:
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/file").write_bytes(os.urandom(200_000))
    (folder / "empty").touch()
    (folder / "run.sh").write_text("echo run\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "secret").write_text("s")
    (folder / "secret").chmod(0o600)
    (folder / "link").symlink_to("deep/er/file")
    (folder / "dangling").symlink_to("/nowhere")
    (folder / "closed").mkdir()
    (folder / "closed/in").write_text("in")
    (folder / "closed").chmod(0o500)
    (folder / "na\nme \xe4").write_text("odd")
    os.utime(folder / "run.sh", ns=(5_000_000_123, 5_000_000_123))


def contents(folder: Path) -> dict[str, tuple[int, object]]:
    """What is below `folder`: modes, and targets or bytes."""
    found: dict[str, tuple[int, object]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        what: object = None
        if stat.S_ISLNK(mode):
            what = os.readlink(path)
        elif stat.S_ISREG(mode):
            what = path.read_bytes()
        found[str(path.relative_to(folder))] = (mode, what)
    return found


def test_a_tree_goes_in_and_out_unchanged(agent: Agent, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    (agent.root / "root").mkdir()
    done = hostd("cp", tree, "a:/root")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"copied 12 files, 200015 bytes\n"
    assert contents(agent.root / "root/tree") == contents(tree)
    done = hostd("cp", "--json", "c/a:/root/tree", tmp_path / "back")
    assert json.loads(done.stdout) == {"files": 12, "bytes": 200015, "skipped": 0}
    assert contents(tmp_path / "back") == contents(tree)
    assert (tmp_path / "back/run.sh").stat().st_mtime_ns == 5_000_000_123
    # Into what is there by now: under its own name, and over itself.
    assert hostd("cp", "a:/root/tree", tmp_path / "back").returncode == 0
    assert contents(tmp_path / "back/tree") == contents(tree)
    assert hostd("cp", tree, "a:/root").returncode == 0
    assert contents(agent.root / "root/tree") == contents(tree)


def test_a_file_goes_under_its_own_name_or_another(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"one")
    (tmp_path / "f").chmod(0o640)
    for destination, name in (("a:/", "f"), ("a:/g", "g"), ("a:/g", "g")):
        assert hostd("cp", tmp_path / "f", destination).returncode == 0
        assert (agent.root / name).read_bytes() == b"one"
        assert stat.S_IMODE((agent.root / name).stat().st_mode) == 0o640
    folder = tmp_path / "here"
    folder.mkdir()
    assert hostd("cp", "a:/g", folder).returncode == 0
    assert hostd("cp", "a:/g", folder / "h").returncode == 0
    assert sorted(os.listdir(folder)) == ["g", "h"]
    assert os.listdir(agent.root).count("f") == 1


def test_a_large_file_is_copied_whole(agent: Agent, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 20
    (tmp_path / "large").write_bytes(data)
    assert hostd("cp", tmp_path / "large", "a:/").returncode == 0
    assert (agent.root / "large").read_bytes() == data
    assert hostd("cp", "a:/large", tmp_path / "again").returncode == 0
    assert (tmp_path / "again").read_bytes() == data


def test_from_one_guest_to_another(agent: Agent, other: Agent, tmp_path: Path) -> None:
    make_tree(agent.root / "tree")
    assert hostd("cp", "a:/tree", "b:/copy").stdout == b"copied 12 files, 200015 bytes\n"
    assert contents(other.root / "copy") == contents(agent.root / "tree")
    assert hostd("cp", "a:/tree", "b:/copy").returncode == 0
    assert contents(other.root / "copy/tree") == contents(agent.root / "tree")


def test_what_is_no_file_is_left_out(agent: Agent, tmp_path: Path) -> None:
    for folder in (agent.root / "out", tmp_path / "in"):
        folder.mkdir()
        os.mkfifo(folder / "pipe")
        (folder / "file").touch()
    for arguments in ((tmp_path / "in", "a:/"), ("a:/out", tmp_path / "back")):
        done = hostd("cp", *arguments)
        assert (done.returncode, done.stdout) == (0, b"copied 2 files, 0 bytes\n")
        assert done.stderr == b"hostd cp: 1 device, pipe or socket left out\n"
    assert os.listdir(tmp_path / "back") == ["file"]


@pytest.mark.parametrize(
    ("source", "destination", "code", "sentence"),
    [
        ("{here}/nosuch", "a:/", 1, "{here}/nosuch: No such file or directory"),
        ("a:/nosuch", "{here}", 1, "a:/nosuch: No such file or directory"),
        ("{here}/file", "a:/no/such", 1, "a:/no/such: No such file or directory"),
        ("a:/file", "{here}/no/such", 1, "{here}/no: No such file or directory"),
        ("{here}/file", "a:relative", 1, "a:relative: is no absolute path"),
        ("{here}/file", "u:/", 1, "guest u: is a unikernel"),
        ("{here}/file", "x:/", 1, "no cluster and no guest named 'x' runs"),
        ("{here}/folder", "a:/file", 1, "guest a: file: Not a directory"),
        ("a:/folder", "{here}/file", 1, "{here}/file: is in the way of a folder"),
        ("{here}/file", "{here}/copy", 2, "neither SOURCE nor DESTINATION is in a guest"),
    ],
)
def test_what_cannot_be_copied_is_told(
    agent: Agent, tmp_path: Path, source: str, destination: str, code: int, sentence: str
) -> None:
    here = tmp_path / "here"
    for folder in (agent.root, here):
        (folder / "folder").mkdir(parents=True)
        (folder / "file").write_text("old")
    done = hostd("cp", source.format(here=here), destination.format(here=here))
    assert done.returncode == code
    assert done.stderr.decode().startswith(f"hostd cp: {sentence.format(here=here)}")
    assert done.stderr.count(b"\n") == 1
    for folder in (agent.root, here):
        assert sorted(os.listdir(folder)) == ["file", "folder"]
        assert (folder / "file").read_text() == "old"


def test_a_guest_that_ends_in_the_middle_leaves_nothing_half(
    office: Office, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (agent.root / "large").write_bytes(bytes(4 << 20))
    from hostd.agent import copying

    ended = []

    class Ending(copying.Writing):
        def feed(self, data: bytes) -> None:
            super().feed(data)
            if not ended:
                ended.append(office.end("a", "guest a: gone"))

    monkeypatch.setattr(copying, "Writing", Ending)
    a = BackgroundCluster("c").guests["a"]
    with pytest.raises(AgentError, match="guest a: ended: guest a: gone"):
        a.copy_out("/large", tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["root", "run"]


def test_from_python(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    a = BackgroundCluster("c").guests["a"]
    assert a.copy_in(tmp_path / "f", "/g").size == 3
    assert a.copy_out("/g", tmp_path / "h").files == 1
    assert (tmp_path / "h").read_bytes() == b"abc"
