"""Guests that are agents alone: one that answers, one that doesn't, and one that has none."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from office import Agent, Office  # type: ignore[import-not-found]

from guestlib.linux import build


@pytest.fixture(scope="session")
def guest_binary(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build.binaries(tmp_path_factory.mktemp("programs")).agent


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """A cluster of Linux guests a and b, whose agents have not been started, and a unikernel u."""
    # Not tmp_path: a Unix socket's path has at most 107 bytes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ha"))
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(folder))
    made = Office({"a": True, "b": True, "u": False})
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture
def agent(office: Office, guest_binary: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Agent]:
    """The agent of the guest a."""
    made = Agent(guest_binary, office.directory.guests / "a.agent.sock", tmp_path / "run", tmp_path / "root")
    yield made
    made.close()


@pytest.fixture
def other(office: Office, guest_binary: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Agent]:
    """The agent of the guest b."""
    made = Agent(guest_binary, office.directory.guests / "b.agent.sock", tmp_path / "run-b", tmp_path / "root-b")
    yield made
    made.close()
