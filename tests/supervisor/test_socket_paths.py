"""A folder whose name is too long for the sockets in it is refused before anything runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import Place

CLUSTER = """
[guest.g]
program = "{programs}/sleeper.c"
memory = "4MiB"
"""
LIMIT = 107


@pytest.fixture
def deep(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder in which a guest's own socket just fits, but not the debugger's."""
    file = place.file(CLUSTER)
    base = Path(tempfile.mkdtemp(prefix="hp"))
    room = LIMIT - len(f"{base}//clusters/{file.stem}/guests/g.sock")
    folder = base / ("x" * room)
    folder.mkdir()
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(folder))
    yield file
    assert [path for path in folder.rglob("*") if path.name in ("g.sock", "control.sock")] == []
    shutil.rmtree(base)


def test_it_is_said(place: Place, deep: Path) -> None:
    done = place.command("up", deep)
    assert done.returncode == 1
    assert (
        "g.gdb.sock: is longer than a Unix socket's 107 bytes; set HOSTD_RUNTIME_DIR to a shorter path" in done.stderr
    )
    assert "Traceback" not in done.stderr
