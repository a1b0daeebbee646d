"""The host side of mixed.toml: bring the cluster up, send on its channel from this process, wait for the collector."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from hostd import Host

COUNT = 1000


def main() -> int:
    with Host() as host:
        cluster = host.up(Path(__file__).with_name("mixed.toml"))
        try:
            with cluster.region("link") as region, region.sender("inbox") as inbox:
                for number in range(COUNT):
                    inbox.send(struct.pack("<16sQ", b"host", number), timeout=60)
            result = cluster.wait("collector", timeout=300).guests["collector"]
            print(cluster.guests["collector"].log)
            return result.exit_code or 0
        finally:
            cluster.down()


if __name__ == "__main__":
    sys.exit(main())
