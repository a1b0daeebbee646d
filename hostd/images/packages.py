"""Debian packages, fetched and unpacked without being installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from hostd.images.errors import ImageStoreError
from hostd.images.folders import appearing, cache, locked, tell

KERNELS = {"debian": "linux-image-amd64", "debian-cloud": "linux-image-cloud-amd64"}
"""metapackages that depend on Debian's current kernel, by the image's name"""


def kernel_package(name: str) -> str:
    """Return the package of the current kernel of "debian" or "debian-cloud". Raises ImageStoreError."""
    found = re.search(r"Depends: (linux-image-\S+)", _run(["apt-cache", "depends", KERNELS[name]]))
    if found is None:
        raise ImageStoreError(f"{KERNELS[name]}: depends on no kernel here; is this Debian, and `apt-get update` done?")
    return found[1]


def fetch(package: str) -> Path:
    """Return the folder of the unpacked `package`, in its current version. Raises ImageStoreError."""
    version = re.search(r"^\s+Candidate: (\S+)", _run(["apt-cache", "policy", package]), re.MULTILINE)
    if version is None or version[1] == "(none)":
        raise ImageStoreError(f"package {package}: is not to be had from apt; run `apt-get update`")
    folder = cache("packages")
    unpacked = folder / f"{package}_{version[1].replace(':', '%3a')}"
    with locked(folder):
        if not unpacked.exists():
            with appearing(unpacked) as made:
                tell(f"fetching {package} {version[1]}")
                downloads = made.parent
                # As root apt would try to be somebody else, who can't write to our folder.
                _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], downloads)
                [archive] = downloads.glob("*.deb")
                tell(f"unpacking {archive.name}")
                _run(["dpkg-deb", "-x", str(archive), str(made)])
    return unpacked


def at_hand(name: str) -> Path:
    """Return the folder of an unpacked kernel "debian" or "debian-cloud": the newest that is here, else apt's.

    Raises ImageStoreError.
    """
    # Asking apt takes seconds, and for some a network.
    flavour = "cloud-amd64" if name == "debian-cloud" else "amd64"
    found = [
        folder
        for folder in cache("packages").glob(f"linux-image-*-{flavour}_*")
        if re.fullmatch(rf"linux-image-[\d.]+-\d+-{flavour}_.*", folder.name)
    ]
    return max(found, key=lambda folder: folder.stat().st_ctime_ns, default=None) or fetch(kernel_package(name))


def vmlinuz(folder: Path) -> Path:
    """Return the bzImage in the folder of an unpacked kernel package."""
    return next((folder / "boot").glob("vmlinuz-*"))


def modules_folder(folder: Path) -> Path:
    """Return lib/modules/VERSION in the folder of an unpacked kernel package."""
    return next((folder / "lib/modules").iterdir())


def busybox() -> Path:
    """Return a static busybox: this host's, or Debian's package of it."""
    for place in ("/bin/busybox", "/usr/bin/busybox"):
        if Path(place).exists() and b"ld-linux" not in Path(place).read_bytes()[:4096]:
            return Path(place)
    return fetch("busybox-static") / "bin/busybox"


def _run(command: list[str], folder: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise ImageStoreError(f"{command[0]} is missing: it takes a Debian or Ubuntu host to fetch Debian's packages")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.split("\n")[:1]
        reason = lines[0].removeprefix("E: ") or "no reason given"
        raise ImageStoreError(f"`{' '.join(command)}` failed: {reason}; is there a network, and `apt-get update` done?")
    return done.stdout
