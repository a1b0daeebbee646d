"""Clusters of real guests: a place for each test's, and a look at what they left."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

import pytest
from places import Place


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled programs of this session in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place for clusters; the test fails if it leaves something there."""
    # Not tmp_path: a Unix socket's path has at most 107 bytes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs"))
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(folder))
    made = Place(folder, tmp_path)
    yield made
    deadline = time.monotonic() + 5
    while made.leftovers() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = made.leftovers()
    made.kill()
    shutil.rmtree(folder)
    assert left == []
