"""The machine and the versions that a figure was taken with."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import hostd
from hostd.doctor import kvm_kind

PROGRAMS = {
    "gcc": ("gcc", "--version"),
    "qemu": ("qemu-system-x86_64", "--version"),
    "dpdk": ("pkg-config", "--modversion", "libdpdk"),
    "iperf3": ("iperf3", "--version"),
}
PACKAGES = ("cffi", "msgpack", "posix_ipc", "pyzmq", "iceoryx2")


def describe() -> dict[str, Any]:
    """Return the processor, memory, kernel, kind of KVM and versions here, by name; nothing that names the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "processor": model[1] if model else platform.processor(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "kvm": kvm_kind().value,
        "itself_a_guest": bool(flags and "hypervisor" in flags[1].split()),
        "governor": governor.read_text().strip() if governor.exists() else None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {**_packages(), **_programs()},
    }


def _packages() -> dict[str, str]:
    found = {"hostd": hostd.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _programs() -> dict[str, str]:
    found = {}
    for name, command in PROGRAMS.items():
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        version = re.search(r"\d+\.\d+(\.\d+)*", done.stdout + done.stderr)
        if version:
            found[name] = version[0]
    return found
