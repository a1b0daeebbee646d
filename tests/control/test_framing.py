"""Frames: whole however they are cut, and nothing but an error for anything else."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.control.framing import FrameError, FrameReader, pack_frame

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.text(), st.binary())
MESSAGES = st.dictionaries(st.text(), SCALARS | st.lists(SCALARS))


@given(st.lists(MESSAGES), st.lists(st.integers(0, 400)))
def test_messages_come_out_as_they_went_in(messages: list[dict[str, object]], cuts: list[int]) -> None:
    stream = b"".join(map(pack_frame, messages))
    reader, received, at = FrameReader(), [], 0
    for cut in [*cuts, len(stream)]:
        received += reader.feed(stream[at : at + cut])
        at += cut
    assert received == messages
    assert not reader.midway


@given(st.binary())
def test_garbage_is_an_error_or_nothing(data: bytes) -> None:
    try:
        messages = FrameReader(4096).feed(data)
    except FrameError:
        return
    assert all(isinstance(message, dict) for message in messages)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({1: 2}), b"\x81", b"\xdf\xff\xff\xff\xff"]
)
def test_bodies_that_are_no_map(body: bytes) -> None:
    with pytest.raises(FrameError, match="a frame holds no"):
        FrameReader().feed(struct.pack("<I", len(body)) + body)


def test_a_length_over_the_limit_is_refused_at_once() -> None:
    reader = FrameReader(1 << 20)
    with pytest.raises(FrameError, match="100000000 bytes is larger than the limit"):
        reader.feed(struct.pack("<I", 100_000_000))
    with pytest.raises(FrameError, match="larger than the limit"):
        pack_frame({"data": bytes(2 << 20)}, 1 << 20)


def test_half_a_frame_waits() -> None:
    reader = FrameReader()
    frame = pack_frame({"a": 1})
    assert reader.feed(frame[:-1]) == []
    assert reader.midway
    assert reader.feed(frame[-1:]) == [{"a": 1}]
