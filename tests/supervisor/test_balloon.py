"""`hostd balloon` of guests that have none, and a unikernel that gives its memory back, as a user sees them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT, Place, until

from hostd import Host
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster

MIB = 1 << 20


@pytest.fixture
def example(place: Place) -> Iterator[BackgroundCluster]:
    """examples/giveback.toml, running."""
    file = place.file((ROOT / "examples" / "giveback.toml").read_text())
    shutil.copy(ROOT / "examples" / "giveback.c", file.parent)
    with Host() as host:
        cluster = host.up(file)
        try:
            yield cluster
        finally:
            cluster.down()


def test_a_unikernel_gives_memory_back_again_and_again(example: BackgroundCluster) -> None:
    """The host's figure goes up by 8 MiB and down again, each time."""
    guest = example.guests["giveback"]

    def resident() -> int:
        return sum(row["resident"] for row in guest.slots() if row["name"] == "ram")

    for _ in range(2):
        until(lambda: resident() > 8 * MIB)
        until(lambda: resident() < MIB)
    given_back = example.call("inspect")["guests"]["giveback"]["stats"]["given_back"]
    assert given_back >= 16 * MIB
    assert given_back % (8 * MIB) == 0
    with pytest.raises(ControlError, match="a unikernel has no balloon; it gives memory back itself"):
        guest.balloon()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((), 1, "guest giveback: balloon: a unikernel has no balloon; it gives memory back itself (guest_give_back)"),
        (("--target", "1TiB"), 1, "bytes can't be in its balloon; it has 16777216 bytes in all"),
        (("--target", "much"), 2, "--target: 'much' is no size"),
    ],
)
def test_what_can_not_be_asked(
    place: Place, example: BackgroundCluster, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    done = place.command("balloon", f"{example.name}/giveback", *arguments)
    assert done.returncode == status
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert example.guests["giveback"].result.outcome == "running"


def test_a_clone_gives_back_what_it_has_written_itself(
    place: Place, example: BackgroundCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is the template's file; what it wrote is a copy, and goes."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    place.names.append(f"{example.name}x")
    example.guests["giveback"].template(place.names[-1])
    with Host() as host:
        clones = host.up_from(place.names[-1])
        try:
            clone = clones.guests[place.names[-1]]

            def written() -> int:
                return sum(row["private"] for row in clone.slots() if row["name"] == "ram")

            until(lambda: written() > 8 * MIB)
            until(lambda: written() < MIB)
            assert all(row["backing"] == "image" for row in clone.slots() if row["name"] == "ram")
        finally:
            clones.down()
