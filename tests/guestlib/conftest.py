"""A party of guests for the tests here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_programs import compile_agent, compile_fuzzer  # type: ignore[import-not-found]
from lan import Lan  # type: ignore[import-not-found]
from party import Party  # type: ignore[import-not-found]


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    party = Party(tmp_path)
    yield party
    party.close()


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """Guests on networks, ended with the test."""
    lan = Lan(tmp_path)
    yield lan
    lan.close()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds; fails after ten seconds."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, "it did not come to hold"
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def agent_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Linux guest's binary, under the sanitizers."""
    return compile_agent(tmp_path_factory.mktemp("agent") / "agent")


@pytest.fixture(scope="session")
def agent_fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzzer of the agent's sessions and copies."""
    return compile_fuzzer(tmp_path_factory.mktemp("fuzz") / "agent_fuzz")
