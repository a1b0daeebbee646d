"""[guest.NAME.framebuffer]"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hostd.cluster.errors import ClusterFileError
from hostd.cluster.file import from_tables
from hostd.cluster.model import Framebuffer


def framebuffer(**keys: Any) -> Framebuffer | None:
    guest = {"image": "a.elf", "framebuffer": keys}
    return from_tables(Path("/tmp/c.toml"), {"guest": {"a": guest}}).guests["a"].framebuffer


def test_defaults_and_sizes() -> None:
    assert framebuffer() == Framebuffer(1024, 768, 4096, None, 0)
    made = framebuffer(width=100, height=64, stride=512, device="dev")
    assert made == Framebuffer(100, 64, 512, Path("/tmp/dev"), 0)
    assert made is not None
    assert made.size == 512 * 64


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"width": 10}, "framebuffer.width: 10"),
        ({"width": 200, "stride": 400}, "400 bytes are fewer than the 800 of 200 pixels"),
        ({"stride": 401}, "framebuffer.stride"),
        ({"width": 8192, "height": 8192}, "128 MiB are possible"),
        ({"widht": 640}, "unknown key; did you mean width?"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ClusterFileError) as caught:
        framebuffer(**keys)
    assert said in str(caught.value)
