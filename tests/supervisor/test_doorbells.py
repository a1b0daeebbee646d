"""Which bells a Linux guest can ring and hears, and which of its channels are fenced."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.cluster.file import load
from hostd.cluster.plan import plan
from hostd.supervisor.regions import VECTORS, Regions
from shm._shm import lib

FILE = """
[cluster]
name = "{name}"
[region.link]
[region.own]
size = 4096
[channel.mixed]
region = "link"
kind = "mpsc"
lanes = 3
[channel.plain]
region = "link"
[guest.left]
kernel = "./vmlinux"
channels = {{ mixed = "send" }}
[guest.small]
image = "x.elf"
channels = {{ mixed = "send", plain = "send" }}
[guest.other]
image = "x.elf"
channels = {{ plain = "receive" }}
[guest.right]
kernel = "./vmlinux"
channels = {{ mixed = "receive" }}
regions = {{ own = "ro" }}
"""


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Regions]:
    path = tmp_path / "c.toml"
    path.write_text(FILE.format(name=f"bells-{uuid.uuid4().hex[:8]}"))
    made = Regions(plan(load(path)))
    made.create()
    yield made
    made.close()


def test_only_channels_that_reach_a_linux_guest_are_fenced(regions: Regions) -> None:
    fenced = {
        end["name"]: bool(end["flags"] & lib.SHM_FENCED)
        for guest in regions._plan.guests.values()
        for end in regions.ends(guest)
    }
    assert fenced == {"mixed": True, "plain": False}


def test_peers_of_a_region(regions: Regions) -> None:
    guests = regions._plan.guests
    left, right = guests["left"], guests["right"]
    [link] = regions.doorbells(left)
    other, own = regions.doorbells(right)
    assert (link["peer"], other["peer"], own["peer"]) == (1, 2, 1)
    # Four bells of the two channels, then those of two Linux guests.
    assert [len(peer) for peer in link["peers"]] == [4, VECTORS, VECTORS]
    assert [len(peer) for peer in own["peers"]] == [0, VECTORS]
    assert len(regions.bells(left)) == 4 + 2 * VECTORS
    assert len(regions.bells(right)) == 4 + 2 * VECTORS + VECTORS
    ends = {guest.name: regions.ends(guest)[0] for guest in (left, right)}
    assert link["waits"] == [ends["left"]["space_bell"]]
    assert other["waits"] == [ends["right"]["data_bell"]]


def test_both_sides_mean_the_same_eventfd(regions: Regions) -> None:
    guests = regions._plan.guests
    left, right = guests["left"], guests["right"]
    ours, theirs = regions.doorbells(left)[0], regions.doorbells(right)[0]

    def descriptor(guest, number):
        return regions.descriptors(guest)[len(guest.regions) :][number]

    for peer in range(3):
        for mine, its in zip(ours["peers"][peer], theirs["peers"][peer], strict=True):
            assert descriptor(left, mine) == descriptor(right, its)


def test_a_unikernel_gets_only_the_bells_of_its_channels(regions: Regions) -> None:
    other = regions._plan.guests["other"]
    assert len(regions.bells(other)) == 2
