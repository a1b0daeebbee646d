"""hostd: clusters of real virtual machines on one Linux host that talk through memory.

from hostd import Host

with Host() as host:
    cluster = host.run("examples/pingpong.toml")
    print(cluster.guests["ping"].reports["rtt_ns_p50"])
"""

from __future__ import annotations

# Not from typing, whose import takes longer than all of `hostd --help`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from hostd.host import Host

__all__ = ["Host"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Guest processes and the command line's help import this package; what is behind Host they must not.
    if name == "Host":
        from hostd.host import Host

        return Host
    raise AttributeError(f"module 'hostd' has no attribute {name!r}")
