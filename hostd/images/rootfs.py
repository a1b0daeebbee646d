"""Root file systems: a small Debian with Python and guestlib, as ext4 or erofs, the same bytes for the same parts."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guestlib.linux import build, stage
from hostd.images import file_systems, store
from hostd.images.errors import ImageStoreError
from hostd.images.folders import appearing, cache, locked, tell

SUITE = "bookworm"
PACKAGES = ("python3", "pciutils", "procps", "iproute2", "iputils-ping", *stage.PACKAGES[1:])
NOT_INSTALLED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/doc/*")
"""files of packages that nobody reads in a guest"""
REMOVED = (
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "var/log",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "etc/machine-id",
    "etc/hostname",
    "etc/resolv.conf",
)
"""what differs from one making to the next, or is the making host's"""
FOLDERS = ("var/log", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/cache/debconf")
TIME = 1_700_000_000
"""seconds since 1970 of all that the file system says of time"""
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "mkfs.erofs": "erofs-utils", "debugfs": "e2fsprogs"}
"""programs, and the Debian packages that have them"""
KEPT = 3
"""archives of packages that are kept, the newest"""
FORMAT = 2
"""to be counted up when what is below changes what is in a root file system"""
PROGRESS = re.compile(r"^[IWE]: (.*?)(\.\.\.)?$")


def make(name: str, packages: Sequence[str], kind: str, size: int | None = None, *, fresh: bool = False) -> store.Image:
    """Return the Debian `name` with `packages` beside the usual ones, as "ext4" (of `size` bytes) or "erofs".

    It is made only if there is none of the same parts, or if it is to be `fresh`. Raises ImageStoreError, BuildError.
    """
    for package in packages:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", package):
            raise ImageStoreError(f"{package!r} is no name of a Debian package")
    if size is not None and kind != "ext4":
        raise ImageStoreError("an erofs is as large as what is in it: leave out --size")
    wanted = sorted({*PACKAGES, *packages})
    programs = build.binaries(cache("programs"))
    base = hashlib.sha256(repr((SUITE, wanted, NOT_INSTALLED, TIME)).encode()).hexdigest()
    digest = hashlib.sha256(repr((FORMAT, base, kind, size, programs.agent.name)).encode())
    for inside, source in stage.tree().items():
        digest.update(inside.encode() + b"\0" + source.read_bytes())
    key = digest.hexdigest()
    if fresh:
        key = hashlib.sha256(key.encode() + os.urandom(16)).hexdigest()

    def write(path: Path) -> dict[str, Any]:
        for tool in ("mmdebstrap", *(("mke2fs", "debugfs") if kind == "ext4" else ("mkfs.erofs",))):
            if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
                raise ImageStoreError(f"{tool} is missing: apt-get install {TOOLS[tool]}")
        if os.geteuid() != 0:
            above = cache("images").parent.parent
            raise ImageStoreError(
                f"a root file system has files of root's, so it is made by root: "
                f"sudo env XDG_CACHE_HOME={above} hostd image rootfs"
            )
        # Beside the image and not in /tmp: that may be small, and here an interrupted run's rest is found again.
        with tempfile.TemporaryDirectory(prefix="root-", dir=path.parent) as folder:
            root = Path(folder, "root")
            _unpack(_debian(wanted, base, fresh=fresh), root)
            tell("putting guestlib in")
            _finish(root, programs)
            tell(f"making the {kind}")
            file_systems.write(root, path, kind, size, TIME)
            count = (root / "var/lib/dpkg/status").read_text().count("\nStatus: install ok installed")
        return {"format": kind, "suite": SUITE, "packages": count, "asked_for": wanted}

    return store.add(name, "rootfs", key, write)


def _debian(wanted: Sequence[str], key: str, *, fresh: bool) -> Path:
    """Return an archive of a Debian of the packages `wanted`; it is kept, as what is put on top changes more often."""
    folder = cache("debian")
    archive = folder / f"{SUITE}-{key[:16]}.tar"
    with locked(folder):
        if fresh or not archive.exists():
            with appearing(archive) as made:
                _install(wanted, made)
            for old in sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
                old.unlink()
    return archive


def _unpack(archive: Path, root: Path) -> None:
    root.mkdir()
    command = ["tar", "-x", "-f", str(archive), "-C", str(root), "--numeric-owner", "-p", "--xattrs-include=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageStoreError(f"{archive} can't be unpacked: {done.stderr.strip()}; try again with --fresh")


def _install(wanted: Sequence[str], archive: Path) -> None:
    """Make a Debian of the packages `wanted`, from this host's sources if it is one of the same suite."""
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in NOT_INSTALLED]
    options.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(TIME), "LC_ALL": "C.UTF-8"}
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(wanted)}", *options, SUITE, str(archive)]
    said: list[str] = []
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            # Progress bars write over themselves.
            text = line.rstrip().rpartition("\r")[2]
            said.append(text)
            shown = PROGRESS.match(text)
            if shown and text.startswith("I:"):
                tell(shown[1])
        code = process.wait()
    except BaseException:
        # It removes what it mounted, if it is asked to end and given the time.
        process.terminate()
        process.wait()
        raise
    if code:
        reasons = [text for text in said if text.startswith("E:")] or said[-1:] or ["no reason given"]
        raise ImageStoreError(f"mmdebstrap could not install {', '.join(wanted)}: {reasons[0]}")


def _finish(root: Path, programs: build.Binaries) -> None:
    """Put guestlib in, take out what differs from one making to the next, and set all times to one."""
    for name in REMOVED:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    # Empty, so that a guest's own init makes one up; without it systemd takes the root for a new machine's.
    (root / "etc/machine-id").touch()
    (root / "etc/hostname").write_text("guest\n")
    modules = root / stage.FOLDER.lstrip("/")
    stage.stage(modules)
    shutil.copyfile(programs.guestctl, root / "usr/local/bin/guestctl")
    (root / "usr/local/bin/guestctl").chmod(0o755)
    _compile(root)
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            os.utime(os.path.join(folder, name), (TIME, TIME), follow_symlinks=False)
    os.utime(root, (TIME, TIME))


def _compile(root: Path) -> None:
    """Compile guestlib for the root's own Python: in a guest there is nothing that would keep it."""
    # Not by time but by content: the compiled modules stay good whatever times a copy has.
    compiling = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    names = [f"{stage.FOLDER}/{name}" for name in ("guestlib", "shm")]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        ["chroot", str(root), *compiling, *names], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ImageStoreError(f"guestlib does not compile in the new root: {(done.stdout + done.stderr).strip()}")
