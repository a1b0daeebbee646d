"""`hostd bench templates`, small: real guests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hostd.cli", "bench", "templates", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_clones_and_boots_are_measured_and_nothing_is_left(places: Path) -> None:
    done = bench("--guests", "3", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    figures = {figure["name"] for figure in report["figures"]}
    assert {"clones_started", "boots_started", "clones_done", "boots_done"} <= figures
    assert {ratio["name"] for ratio in report["ratios"]} >= {"started: clones/boots", "done: clones/boots"}
    assert list((places / "hostd/templates").glob("*/*")) == []


def test_a_number_that_is_none() -> None:
    done = bench("--guests", "0")
    assert done.returncode == 1
    assert "--guests 0: from 1 to 10000 are possible" in done.stderr
