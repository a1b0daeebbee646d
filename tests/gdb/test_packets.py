"""Packets in any pieces, and bytes that are none."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.gdb.packets import PacketReader, Signal, escape, packet, unescape

MANY = 100_000 if "HOSTD_LONG" in os.environ else 300
DATA = st.binary(max_size=64).map(escape)
SIGNALS = st.sampled_from([("signal", byte) for byte in b"+-\x03"])
ITEMS = st.lists(st.one_of(DATA.map(lambda data: ("packet", data)), SIGNALS))
NAMES = {ord("+"): Signal.ACK, ord("-"): Signal.RESEND, 3: Signal.INTERRUPT}


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in zip(at, at[1:], strict=False)]


@settings(max_examples=MANY, deadline=None)
@given(ITEMS, st.lists(st.integers(0, 10_000), max_size=8))
def test_what_was_sent_arrives_however_it_is_cut(items: list[tuple[str, bytes | int]], cuts: list[int]) -> None:
    sent = b"".join(packet(what) if kind == "packet" else bytes([what]) for kind, what in items)
    reader, got = PacketReader(), []
    for piece in pieces(sent, cuts):
        got += reader.feed(piece)
    assert got == [what if kind == "packet" else NAMES[what] for kind, what in items]


@settings(max_examples=MANY, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"$", b"#", b"$#00", b"}", b"$c#63", b"$" * 9]))))
def test_any_bytes_are_taken_and_a_packet_behind_them_arrives(noise: list[bytes]) -> None:
    reader = PacketReader(limit=64)
    for data in noise:
        reader.feed(data)
    # At most the rest of a packet that had begun stands before it.
    assert b"qC" in reader.feed(packet(b"?") + packet(b"qC"))
    assert len(reader._data) <= 128


@settings(max_examples=MANY, deadline=None)
@given(st.binary())
def test_binary_data_is_what_it_was(data: bytes) -> None:
    escaped = escape(data)
    assert unescape(escaped) == data
    assert not set(b"#$*") & set(escaped)


def test_a_wrong_checksum_and_a_packet_too_long_are_damage() -> None:
    reader = PacketReader(limit=8)
    assert reader.feed(b"$?#40") == [Signal.DAMAGED]
    assert reader.feed(b"$?#zz") == [Signal.DAMAGED]
    assert reader.feed(packet(b"m" * 9)) == [Signal.DAMAGED]
    assert reader.feed(b"$" + b"m" * 5000) == []
    assert reader.feed(b"#00") == [Signal.DAMAGED]
    assert reader.feed(packet(b"?")) == [b"?"]


def test_a_checksum_is_the_sum_of_the_bytes() -> None:
    # The example of the protocol's documentation.
    assert packet(b"qRcmd,746573740a") == b"$qRcmd,746573740a#" + b"%02x" % (sum(b"qRcmd,746573740a") % 256)
    assert packet(b"OK") == b"$OK#9a"
