"""A copy's records (docs/agent-protocol.md): files made into them, and them into files, none outside their place."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from guestlib.linux import protocol
from guestlib.linux.protocol import Kind
from hostd.agent.link import AgentError

CHUNK = protocol.MAX_PAYLOAD
PERMISSIONS = 0o777
"""what is taken of a guest's modes: no set-user-id from there"""


class Reading:
    """A file or folder as records; `files`, `size` and `skipped` (devices, pipes, sockets) count as they are read."""

    def __init__(self, source: Path) -> None:
        self.files = 0
        self.size = 0
        self.skipped = 0
        self._source = source

    def chunks(self) -> Iterator[bytes]:
        """Give the bytes. The source itself may be a symbolic link; below it links stay links. Raises OSError."""
        yield from self._entry(self._source, b"", self._source.stat())

    def _entry(self, path: Path, name: bytes, found: os.stat_result) -> Iterator[bytes]:
        if stat.S_ISDIR(found.st_mode):
            yield self._head(Kind.DIRECTORY, name, found)
            for entry in sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name)):
                inside = os.fsencode(entry.name)
                yield from self._entry(
                    Path(entry.path), name + b"/" + inside if name else inside, entry.stat(follow_symlinks=False)
                )
        elif stat.S_ISLNK(found.st_mode):
            yield self._head(Kind.SYMLINK, name, found, target=os.fsencode(path.readlink()))
        elif stat.S_ISREG(found.st_mode):
            yield from self._file(path, name)
        else:
            self.skipped += 1

    def _file(self, path: Path, name: bytes) -> Iterator[bytes]:
        with path.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            yield self._head(Kind.FILE, name, found, size=found.st_size)
            left = found.st_size
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise AgentError(f"{path}: became shorter while it was copied")
                left -= len(data)
                self.size += len(data)
                yield data

    def _head(self, kind: Kind, name: bytes, found: os.stat_result, *, size: int = 0, target: bytes = b"") -> bytes:
        if max(len(name), len(target)) > protocol.MAX_PATH:
            raise AgentError(f"{os.fsdecode(name)}: the path is too long to be copied")
        self.files += 1
        mode = stat.S_IMODE(found.st_mode)
        record = (kind, mode, found.st_uid, found.st_gid, found.st_mtime_ns, size, len(name), len(target))
        return protocol.RECORD.pack(*record) + name + target


class Writing:
    """Makes files of records, at `destination`, or in it under `name` if it is a folder. A context manager.

    What the records say is the guest's and may be hostile: no path leads out of the destination, and no symbolic link
    below it is followed. A file appears when it is whole.
    """

    def __init__(self, destination: Path, name: str) -> None:
        self.files = 0
        self.size = 0
        into = destination.is_dir()
        self._name = os.fsencode(name if into else destination.name)
        parent = destination if into else destination.parent
        if self._name in (b"", b".", b".."):
            raise AgentError(f"{destination}: is no name for a copy")
        self.path = parent / os.fsdecode(self._name)
        self._base = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder: tuple[bytes, int] | None = None
        self._modes: list[tuple[bytes, int]] = []
        self._data = bytearray()
        self._file: tuple[int, int, bytes, bytes, int, int] | None = None
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises AgentError for what can't be a record, OSError for what can't be written."""
        self._data += data
        while True:
            if self._file is not None:
                part = bytes(self._data[: self._left])
                self._write(part)
                del self._data[: len(part)]
                if self._left:
                    return
                self._complete()
            elif not self._record():
                return

    def finish(self) -> None:
        """Take note that no more comes. Raises AgentError if something is missing."""
        if self._file is not None or self._data or not self.files:
            raise AgentError("the guest ended the copy in the middle")
        for path, mode in reversed(self._modes):
            folder, leaf = self._place(path)
            descriptor = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    # --- records -------------------------------------------------------------------------------------------------

    def _record(self) -> bool:
        """Take one record's head, if it is there."""
        head = protocol.RECORD.size
        if len(self._data) < head:
            return False
        kind, mode, _, _, mtime_ns, size, path_size, target_size = protocol.RECORD.unpack_from(self._data)
        if max(path_size, target_size) > protocol.MAX_PATH:
            raise AgentError("the guest sent a path that is too long")
        end = head + path_size + target_size
        if len(self._data) < end:
            return False
        path, target = bytes(self._data[head : head + path_size]), bytes(self._data[head + path_size : end])
        del self._data[:end]
        self._check(path, target)
        folder, leaf = self._place(path)
        self.files += 1
        if kind == Kind.DIRECTORY:
            self._directory(folder, leaf)
            self._modes.append((path, mode & PERMISSIONS))
        elif kind == Kind.SYMLINK:
            partial = _partial()
            os.symlink(target, partial, dir_fd=folder)
            _replace(partial, leaf, folder)
        elif kind == Kind.FILE:
            partial = _partial()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o600, dir_fd=folder)
            self._file = (descriptor, os.dup(folder), partial, leaf, mode & PERMISSIONS, mtime_ns)
            self._left = size
        else:
            raise AgentError(f"the guest sent a record of kind {kind}, which there is not")
        return True

    def _check(self, path: bytes, target: bytes) -> None:
        if b"\0" in path + target:
            raise AgentError("the guest sent a path with a zero byte")
        if not path:
            if self.files:
                raise AgentError("the guest sent a second beginning of the copy")
        elif not self.files or any(part in (b"", b".", b"..") for part in path.split(b"/")):
            raise AgentError(f"the guest sent the path {os.fsdecode(path)!r}, which leads elsewhere")

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """Return the folder (kept open here) and the name for a record's path."""
        if not path:
            return self._base, self._name
        parent, _, leaf = (self._name + b"/" + path).rpartition(b"/")
        if self._folder is None or self._folder[0] != parent:
            descriptor = os.dup(self._base)
            try:
                for part in parent.split(b"/"):
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    inner = os.open(part, flags, dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = inner
            except OSError as error:
                os.close(descriptor)
                where = os.fsdecode(parent)
                raise AgentError(f"{where}: the guest put something into what is no folder: {error.strerror}") from None
            if self._folder is not None:
                os.close(self._folder[1])
            self._folder = (parent, descriptor)
        return self._folder[1], leaf

    def _directory(self, folder: int, leaf: bytes) -> None:
        try:
            os.mkdir(leaf, 0o700, dir_fd=folder)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(leaf, dir_fd=folder, follow_symlinks=False).st_mode):
                raise AgentError(f"{self.path.parent / os.fsdecode(leaf)}: is in the way of a folder") from None

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._file[0], view) :]
        self._left -= len(data)
        self.size += len(data)

    def _complete(self) -> None:
        assert self._file is not None
        descriptor, folder, partial, leaf, mode, mtime_ns = self._file
        os.fchmod(descriptor, mode)
        with contextlib.suppress(OSError, OverflowError):  # A time that the file system can't hold.
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        _replace(partial, leaf, folder)
        self._file = None
        os.close(descriptor)
        os.close(folder)

    def close(self) -> None:
        """Remove a file that is not whole, and let go of all."""
        if self._file is not None:
            descriptor, folder, partial, *_ = self._file
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            os.close(descriptor)
            os.close(folder)
            self._file = None
        if self._folder is not None:
            os.close(self._folder[1])
            self._folder = None
        os.close(self._base)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _partial() -> bytes:
    return f".copying-{secrets.token_hex(8)}".encode()


def _replace(partial: bytes, leaf: bytes, folder: int) -> None:
    try:
        os.replace(partial, leaf, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise
