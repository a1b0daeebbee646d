"""What a guest draws is what the host shows, while the guest runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT, Place, until

from hostd import Host
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster

CLUSTER = """
[guest.painter]
program = "{programs}/painter.c"
args = ["once"]
memory = "4MiB"
[guest.painter.framebuffer]
width = 700
height = 500
[guest.restless]
program = "{programs}/painter.c"
memory = "4MiB"
framebuffer = { width = 64, height = 64, stride = 512 }
[guest.blind]
program = "{programs}/sleeper.c"
memory = "4MiB"
"""


def drawn(cluster: BackgroundCluster, guest: str) -> bool:
    return "stride" in cluster.guests[guest].reports


def expected(x: int, y: int) -> tuple[int, int, int]:
    return x & 255, y & 255, x // 256 + y // 256 * 16


def test_a_screenshot_shows_what_the_guest_drew(place: Place, tmp_path: Path) -> None:
    file = place.file(CLUSTER)
    with Host() as host:
        cluster = host.up(file)
        until(lambda: drawn(cluster, "painter") and drawn(cluster, "restless"))
        assert cluster.guests["painter"].reports["stride"] == 2800
        image = cluster.guests["painter"].screenshot()
        assert image.size == (700, 500)
        points = [(x, y) for x in (0, 1, 255, 256, 699) for y in (0, 1, 255, 256, 499)]
        assert [image.getpixel(point) for point in points] == [expected(*point) for point in points]

        done = place.command("screenshot", f"{file.stem}/painter", tmp_path / "out.png", "--json")
        assert json.loads(done.stdout) == {
            "guest": "painter",
            "file": str(tmp_path / "out.png"),
            "width": 700,
            "height": 500,
        }
        with Image.open(tmp_path / "out.png") as written:
            assert written.tobytes() == image.tobytes()

        # The picture has rows longer than its pixels, and changes.
        other = cluster.guests["restless"]
        assert other.reports["stride"] == 512
        first = other.screenshot()
        assert first.getpixel((5, 9)) == expected(5, 9)
        until(lambda: other.screenshot().getpixel((0, 0)) != first.getpixel((0, 0)))

        row = next(row for row in cluster.guests["painter"].slots() if row["name"] == "framebuffer")
        assert row["resident"] >= 700 * 500 * 4
        cluster.down()


def test_what_can_not_be_shown_is_said(place: Place, tmp_path: Path) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        with pytest.raises(ControlError, match=r"blind: has no frame buffer; .*\[guest\.blind\.framebuffer\]"):
            cluster.guests["blind"].screenshot()
        cluster.guests["painter"].stop()
        done = place.command("screenshot", "painter", tmp_path / "out.png")
        assert done.returncode == 1
        assert done.stderr.endswith("guest painter: is not running (ended), so it shows nothing\n")
        assert not (tmp_path / "out.png").exists()
        cluster.down()


def test_a_browser_sees_it_change(place: Place) -> None:
    file = place.file(CLUSTER)
    command = [sys.executable, "-m", "hostd.cli", "view", f"{file.stem}/restless", "--json"]
    with Host() as host:
        cluster = host.up(file)
        until(lambda: drawn(cluster, "restless"))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as viewer:
            assert viewer.stdout is not None
            assert viewer.stderr is not None
            told = "".join(viewer.stdout.readline() for _ in range(4))
            url = json.loads(told)["url"]
            with urllib.request.urlopen(url) as page:
                assert b"restless" in page.read()
            with urllib.request.urlopen(f"{url}stream") as stream:
                parts = [part(stream) for _ in range(3)]
            assert len(set(parts)) == 3
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url.replace(url.split("/")[3], "x" * 22))
            with urllib.request.urlopen(f"{url}stream") as stream:
                part(stream)
                cluster.guests["restless"].stop()
                assert viewer.wait(10) == 1
            assert "restless" in viewer.stderr.read()
        cluster.down()


def test_ctrl_c_ends_a_view(place: Place) -> None:
    file = place.file(CLUSTER)
    with Host() as host:
        cluster = host.up(file)
        command = [sys.executable, "-m", "hostd.cli", "view", f"{file.stem}/painter"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as viewer:
            assert viewer.stdout is not None
            assert "until Ctrl-C" in viewer.stdout.readline()
            viewer.send_signal(signal.SIGINT)
            assert viewer.wait(10) == 0
        cluster.down()


def part(stream: object) -> bytes:
    """Read the next picture of a stream."""
    size = 0
    while (line := stream.readline().strip()) or not size:  # type: ignore[attr-defined]
        if line.startswith(b"Content-Length:"):
            size = int(line.split(b":")[1])
    body: bytes = stream.read(size)  # type: ignore[attr-defined]
    assert body.startswith(b"\x89PNG")
    return body


LOADED = """
[region.r]
[channel.numbers]
region = "r"
[guest.sender]
program = "{programs}/numbers.c"
args = ["60000"]
memory = "4MiB"
channels = { numbers = "send" }
[guest.painter]
program = "{programs}/canvas.c"
args = ["60000"]
memory = "4MiB"
channels = { numbers = "receive" }
framebuffer = { width = 64, height = 64 }
"""


def test_pictures_are_taken_while_messages_go_on(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(LOADED))
        seen = set()
        while cluster.guests["painter"].result.outcome == "running":
            try:
                image = cluster.guests["painter"].screenshot()
            except ControlError:  # It ended meanwhile.
                break
            seen.add(image.getpixel((63, 63)))
        result = cluster.wait("painter", "sender", timeout=60)
        assert len(seen) > 3, "it drew between the looks"
        assert result.guests["painter"].exit_code == 0, result.guests["painter"].message
        assert result.guests["painter"].reports["received"] == 60000
        cluster.down()
