"""A switch with vhost-user ports, and front ends on them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from vhost_front import Nic

from net.switch import Switch


class Lan:
    """A switch in this process, with ports by name; the sockets lie in a folder of its own."""

    def __init__(self, **switch: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lan."))  # pytest's folders have names too long for sockets
        self.switch = Switch(**switch)
        self.switch.start()
        self.nics: list[Nic] = []

    def close(self) -> None:
        for nic in self.nics:
            nic.close()
        self.switch.close()
        shutil.rmtree(self.folder)

    def port(self, name: str, **options: Any) -> str:
        """Add a port; return its socket's path."""
        path = str(self.folder / name)
        self.switch.add_vhost(name, path, **options)
        return path

    def nic(self, name: str, **nic: Any) -> Nic:
        """Add a port and a card for it, which is not connected yet."""
        mac = bytes([2, 0, 0, 0, 0, len(self.nics) + 1])
        return self.again(self.port(name), **{"mac": mac, **nic})

    def again(self, path: str, **nic: Any) -> Nic:
        """A card for a port that is there."""
        made = Nic(path, **nic)
        self.nics.append(made)
        return made

    def pair(self, **nic: Any) -> tuple[Nic, Nic]:
        """Two ports, a and b, with cards that have started."""
        return self.nic("a", **nic).start(), self.nic("b", **nic).start()

    def info(self, name: str) -> Any:
        """What the switch says of a port."""
        [found] = [port for port in self.switch.ports() if port.name == name]
        return found

    def drops(self, name: str, reason: str) -> int:
        return int(self.info(name).counters.drops[reason])
