"""The process's limits, the compiler, the processor."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

from hostd.doctor.check import Check

FILES_WANTED = 4096
"""a supervisor holds a few descriptors for each guest, region and bell"""


def check_open_files() -> Check:
    """Look at how many files the supervisor may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_WANTED:
        return Check("open files", "ok", f"up to {soft}")
    where = "in the shell that starts hostd"
    if hard < FILES_WANTED:
        where = "as root, or by LimitNOFILE= in a systemd unit"
    text = f"at most {soft}: enough for few guests"
    return Check("open files", "warn", text, f"`ulimit -n {FILES_WANTED}` {where}")


def check_compiler(compiler: str | None = None) -> Check:
    """Look for the C compiler that builds unikernels ($CC, else gcc)."""
    name = compiler or os.environ.get("CC", "gcc")
    path = shutil.which(name)
    if path is None:
        hint = "install one (Debian: `apt-get install gcc libc6-dev`); ready-made images run without"
        text = f"no {name}: `hostd build` and `program =` in cluster files fail"
        return Check("compiler", "warn", text, hint)
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("compiler", "warn", f"{path} does not run: {error}", "install it anew")
    return Check("compiler", "ok", said.splitlines()[0] if said else path)


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """Look for AVX2, which unikernels and large copies use where it is."""
    text = cpuinfo.read_text()
    flags = text.partition("\nflags")[2].partition("\n")[0].split()
    model = text.partition("model name")[2].partition("\n")[0].partition(":")[2].strip() or "x86-64"
    cores = len(os.sched_getaffinity(0))
    if "avx2" not in flags:
        hint = "nothing to do; unikernels are built for plain x86-64"
        return Check("processor", "warn", f"{model}, no AVX2", hint)
    if cores < 2:
        hint = "give this process two CPUs; guests that wait by spinning hold up each other on one"
        return Check("processor", "warn", f"{model}, AVX2, one CPU", hint)
    return Check("processor", "ok", f"{model}, AVX2, {cores} CPUs")
