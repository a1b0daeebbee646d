"""A Linux guest's console and what its programs draw are what the host shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostd import Host
from hostd.host import BackgroundCluster, Completed

pytestmark = pytest.mark.timeout(600)
WAIT = 300.0
SIZE = 320, 240

FILE = """
[cluster]
name = "linux-framebuffer"
[guest.a]
kernel = "debian-cloud"
memory = "128MiB"
framebuffer = { width = 320, height = 240 }
"""


def run(cluster: BackgroundCluster, command: str) -> Completed:
    return cluster.guests["a"].exec("sh", "-c", command, wait=WAIT)


def test_linux_draws(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(FILE)
    with Host() as host:
        cluster = host.up(tmp_path / "c.toml")
        try:
            found = run(
                cluster, "cat /sys/class/graphics/fb0/name /sys/class/graphics/fb0/virtual_size; cat /proc/cmdline"
            )
            assert found.stdout.decode().splitlines()[:2] == ["EFI VGA", "320,240"], found
            # The console: text is bright on black, and a cleared screen is black.
            run(cluster, r"printf '\033[2J\033[H\033[?25lhello' > /dev/tty1; sleep 1")
            image = cluster.guests["a"].screenshot()
            assert image.size == SIZE
            colours = image.getcolors()
            assert colours is not None
            shown = {colour: count for count, colour in colours}
            assert shown[0, 0, 0] > SIZE[0] * SIZE[1] * 0.98
            lit = [(x, y) for x in range(SIZE[0]) for y in range(SIZE[1]) if image.getpixel((x, y)) != (0, 0, 0)]
            assert 40 < len(lit) < 5 * 8 * 16
            assert max(x for x, _ in lit) < 5 * 8
            assert max(y for _, y in lit) < 16
            # A program: /dev/fb0 is the picture itself.
            draw = r"i=0; while [ $i -lt 320 ]; do printf '\001\002\003\377'; i=$((i+1)); done > /tmp/row"
            done = run(cluster, f"{draw}; dd if=/tmp/row of=/dev/fb0 bs=1280 seek=100 2>&1")
            assert done.exit_code == 0, done
            image = cluster.guests["a"].screenshot()
            assert [image.getpixel((x, 100)) for x in (0, 160, 319)] == [(3, 2, 1)] * 3
            assert image.getpixel((160, 99)) == (0, 0, 0)
        finally:
            cluster.down()
