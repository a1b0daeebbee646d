"""The plan: guests by count, their order, who has which end."""

from __future__ import annotations

import pathlib

import pytest

from hostd.cluster import ClusterFileError
from hostd.cluster.file import load
from hostd.cluster.plan import End, Plan, plan

HEAD = '[region.r]\n[region.s]\n[channel.c]\nregion = "r"\n'


def planned(folder: pathlib.Path, text: str) -> Plan:
    file = folder / "planned.toml"
    file.write_text(HEAD + text)
    return plan(load(file))


def test_count_makes_guests_and_lanes(tmp_path: pathlib.Path) -> None:
    made = planned(
        tmp_path,
        """
        kind = "mpsc"
        [guest.w]
        image = "w"
        count = 3
        channels = { c = "send" }
        [guest.one]
        image = "w"
        channels = { c = "send" }
        [guest.get]
        image = "w"
        regions = { s = "ro" }
        channels = { c = "receive" }
        """,
    )
    assert list(made.guests) == ["w-0", "w-1", "w-2", "one", "get"]
    assert made.channels["c"].lanes == 4
    assert [made.guests[name].ends for name in ("w-2", "one", "get")] == [
        (End("c", "send", 2),),
        (End("c", "send", 3),),
        (End("c", "receive", 0),),
    ]
    assert made.guests["get"].regions == (("r", "rw"), ("s", "ro"))


def test_guests_come_after_those_they_name(tmp_path: pathlib.Path) -> None:
    made = planned(
        tmp_path,
        """
        [guest.a]
        image = "x"
        after = "b"
        [guest.b]
        image = "x"
        count = 2
        after = ["c"]
        [guest.c]
        image = "x"
        """,
    )
    assert list(made.guests) == ["c", "b-0", "b-1", "a"]
    assert made.guests["a"].after == ("b-0", "b-1")


def test_a_circle_is_named(tmp_path: pathlib.Path) -> None:
    text = "".join(f'[guest.{a}]\nimage = "x"\nafter = "{b}"\n' for a, b in ("ab", "bc", "ca"))
    with pytest.raises(ClusterFileError, match=r"goes in a circle \(a after b after c after a"):
        planned(tmp_path, text)


def test_two_guests_with_one_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ClusterFileError, match="two guests are named 'a-1'"):
        planned(tmp_path, '[guest.a]\nimage = "x"\ncount = 2\n[guest.a-1]\nimage = "x"\n')


@pytest.mark.parametrize(
    ("kind", "role", "advice"),
    [("spsc", "send", "mpsc"), ("spsc", "receive", "broadcast"), ("broadcast", "send", "mpsc")],
)
def test_more_guests_than_a_channel_has_ends(tmp_path: pathlib.Path, kind: str, role: str, advice: str) -> None:
    with pytest.raises(ClusterFileError, match=rf"channel\.c: 2 guests {role} on it.*{advice}"):
        planned(tmp_path, f'kind = "{kind}"\n[guest.a]\nimage = "x"\ncount = 2\nchannels = {{ c = "{role}" }}\n')


def test_lanes_leave_room_for_host_processes(tmp_path: pathlib.Path) -> None:
    guests = '[guest.a]\nimage = "x"\ncount = 4\nchannels = { c = "join" }\n'
    assert planned(tmp_path, f'kind = "barrier"\nlanes = 6\n{guests}').channels["c"].lanes == 6
    with pytest.raises(ClusterFileError, match=r"channel\.c\.lanes: 3 is fewer than the 4 guests"):
        planned(tmp_path, f'kind = "barrier"\nlanes = 3\n{guests}')


def test_a_unikernels_port_is_a_private_region_with_two_rings(tmp_path: pathlib.Path) -> None:
    made = planned(
        tmp_path,
        """
        [network.lan]
        mtu = 9000
        [guest.u]
        image = "w"
        count = 1
        channels = { c = "send" }
        networks = ["lan"]
        [guest.linux]
        kernel = "k"
        networks = ["lan"]
        """,
    )
    guest = made.guests["u-0"]
    assert guest.regions == (("r", "rw"), ("net.lan.u-0", "rw"))
    assert guest.ends[1:] == (End("net.lan.u-0.out", "send", 0), End("net.lan.u-0.in", "receive", 0))
    region = made.regions["net.lan.u-0"]
    assert (region.label, region.private, region.backing) == ("net.lan", True, "memfd")
    out = made.channels["net.lan.u-0.out"]
    assert (out.region, out.label, out.inner, out.max_message) == ("net.lan.u-0", "net.lan.out", "out", 12 + 9000 + 18)
    assert out.size >= 16 * out.max_message
    assert made.guests["linux"].regions == (), "its device is another"
    assert list(made.regions) == ["r", "s", "net.lan.u-0"]
