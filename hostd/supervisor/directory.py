"""A running cluster's folder, `<runtime>/clusters/<name>/`: lock, sockets, what it takes to adopt or remove it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

import shm
from hostd.control.framing import FrameError, FrameReader, pack_frame
from hostd.supervisor.errors import ClusterRunningError, NoSuchClusterError, SupervisorError
from hostd.supervisor.processes import alive, end, holder
from hostd.vmm.memory_group import remove_groups
from net.leftovers import remove_networks
from shm.naming import runtime_path

SOCKET_PATH_LIMIT = 107  # sun_path, less the closing zero
SWEEP_TIMEOUT = 10.0
STATE_VERSION = 1


def clusters_folder() -> Path:
    """Return the folder that holds a folder per running cluster."""
    return Path(runtime_path(), "clusters")


def cluster_names() -> list[str]:
    """Return the names of the clusters that run, or whose remains are still there."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in clusters_folder().iterdir() if entry.is_dir())
    return []


class ClusterDirectory:
    """The folder of the cluster `name`; makes nothing until `claim`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = clusters_folder() / name
        self.control = self.path / "control.sock"
        self.guests = self.path / "guests"
        self.logs = self.path / "logs"
        self.state_file = self.path / "cluster.msgpack"
        self.journal_file = self.path / "journal"
        self.supervisor_log = self.path / "supervisor.log"
        self._lock: int | None = None

    def log(self, guest: str) -> Path:
        """Return the path of a guest's console log."""
        return self.logs / f"{guest}.log"

    def socket(self, guest: str) -> Path:
        """Return the path of a guest process's socket."""
        return self.guests / f"{guest}.sock"

    # --- who may use it ----------------------------------------------------------------------------------------

    def claim(self, longest_socket: str) -> None:
        """Make the folder this process's own, for a new run; what a crashed run left in it is removed.

        `longest_socket` is the longest of the names that guests' sockets will have there.

        Raises ClusterRunningError when the cluster runs, SupervisorError or OSError when the folder can't be made.
        """
        for path in (self.guests / longest_socket, self.control):
            if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
                raise SupervisorError(
                    f"{path}: is longer than a Unix socket's {SOCKET_PATH_LIMIT} bytes; "
                    "set HOSTD_RUNTIME_DIR to a shorter path or shorten the names"
                )
        shm.runtime_dir()
        self._take_lock()
        try:
            self._reclaim()
            self.guests.mkdir(mode=0o700)
            self.logs.mkdir(mode=0o700)
        except ClusterRunningError:
            self.release()
            raise
        except BaseException:
            self.remove()
            raise

    def attach(self) -> dict[str, Any]:
        """Make the folder of a background cluster whose supervisor died this process's own; return its state.

        Raises ClusterRunningError when its supervisor lives, NoSuchClusterError when there is none.
        """
        if not self.state_file.exists():
            raise NoSuchClusterError(f"no cluster {self.name!r} runs; `hostd ps` lists those that do")
        self._take_lock()
        state = self.state()
        if state is None or state["foreground"]:
            self.release()
            raise NoSuchClusterError(f"no cluster {self.name!r} runs in the background; its foreground run crashed")
        return state

    def _take_lock(self) -> None:
        lock_file = self.path / "lock"
        while self._lock is None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # The last owner has just removed the folder.
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock_file.exists() and os.path.samestat(os.fstat(lock), lock_file.stat()):
                    self._lock = lock
                    return
            except BlockingIOError:
                os.close(lock)
                raise self._running() from None
            except FileNotFoundError:
                pass
            os.close(lock)

    def _running(self) -> ClusterRunningError:
        return ClusterRunningError(f"cluster {self.name!r} runs already; end it with `hostd down {self.name}`")

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- what a crash left -------------------------------------------------------------------------------------

    def _reclaim(self) -> None:
        state = self.state()
        if state is not None:
            if state["foreground"]:
                self._await_sweep(state)
            elif any(self._listening()) or alive(state["warm"]):
                self.release()
                raise self._running()
            remove_groups(state["cleanup"])
            remove_networks(state["cleanup"])
            shm.sweep([item for item in state["cleanup"] if item != str(self.path)])
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name == "lock":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not (self.path / "lock").exists():  # The warm parent's sweep took the folder while we waited for it.
            self.release()
            self._take_lock()

    def _await_sweep(self, state: dict[str, Any]) -> None:
        """Wait until the warm parent of a killed foreground run has removed what that run made."""
        deadline = time.monotonic() + SWEEP_TIMEOUT
        while alive(state["warm"]) and time.monotonic() < deadline:
            time.sleep(0.02)
        end(state["warm"])

    def _listening(self) -> Iterator[bool]:
        for path in self.guests.glob("*.sock") if self.guests.exists() else ():
            yield holder(path)

    # --- state and journal -------------------------------------------------------------------------------------

    def save(self, state: dict[str, Any]) -> None:
        """Write what another supervisor needs to adopt or remove the cluster."""
        partial = self.state_file.with_suffix(".new")
        try:
            partial.write_bytes(msgpack.packb({"version": STATE_VERSION, **state}))
            partial.chmod(0o600)
            partial.replace(self.state_file)
        except OSError as error:
            error.filename = str(self.state_file)  # A write that fails doesn't say to what.
            raise

    def state(self) -> dict[str, Any] | None:
        """Return what was saved, or None."""
        try:
            state = msgpack.unpackb(self.state_file.read_bytes())
        except (OSError, ValueError, msgpack.UnpackException):
            return None
        return state if isinstance(state, dict) and state.get("version") == STATE_VERSION else None

    def note(self, entry: dict[str, Any]) -> None:
        """Add `entry` to the journal."""
        journal = os.open(self.journal_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(journal, pack_frame(entry))
        finally:
            os.close(journal)

    def journal(self) -> list[dict[str, Any]]:
        """Return the journal's entries; one that was being written in a crash is left out."""
        try:
            return FrameReader().feed(self.journal_file.read_bytes())
        except (OSError, FrameError):
            return []

    def remove(self) -> None:
        """Remove the folder with all in it and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()
