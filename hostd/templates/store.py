"""Where templates are kept: a folder each, with the guest's memory, its program or kernel, and all else as msgpack.

NAME/memory         the bytes of its own rows, one after the other, with holes where they are zero
NAME/image          the program or kernel it booted: clones of a unikernel read its symbols
NAME/template       everything else: see `Template`
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgpack

from hostd.images.folders import appearing, locked
from hostd.templates.errors import TemplateError

FORM = 1
"""of the file `template`"""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
FILE, MEMORY, IMAGE = "template", "memory", "image"


@dataclass(frozen=True)
class Template:
    """A frozen guest. Everything is plain values, as they came from its supervisor and its process."""

    name: str
    guest: str
    """the guest it was, in `cluster`"""
    cluster: str
    made: float
    """Unix time, seconds"""
    processor: str
    """the host's, on which it can go on"""
    kind: str
    """"unikernel" or "linux" """
    file: str
    """the cluster file, against whose folder paths in `table` are"""
    table: Mapping[str, Any]
    """the guest's [guest.NAME] of that file"""
    tables: Mapping[str, Any]
    """[region], [channel] and [network] of what the guest used there"""
    image: Mapping[str, Any]
    """the "image" of the guest's spec"""
    files: list[list[str]]
    """what the guest's process was given besides its program: paths and accesses"""
    rows: list[Mapping[str, Any]]
    """where its memory lies in the file"""
    state: Mapping[str, Any]
    """what its process said of everything else: vCPUs, devices"""

    @property
    def folder(self) -> Path:
        return folder() / self.name

    @property
    def memory_file(self) -> Path:
        return self.folder / MEMORY

    @property
    def image_file(self) -> Path:
        return self.folder / IMAGE

    @property
    def size(self) -> int:
        """Bytes of memory that the template describes."""
        return sum(int(row["size"]) for row in self.rows)

    @property
    def disk_size(self) -> int:
        """Bytes that its files take."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())

    def describe(self) -> dict[str, Any]:
        """Return what a list of templates says of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "guest": f"{self.cluster}/{self.guest}",
            "made": self.made,
            "memory": self.size,
            "disk": self.disk_size,
            "folder": str(self.folder),
        }


def folder() -> Path:
    """Return the folder of all templates. Raises TemplateError when it can't be made."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    found = Path(base, "hostd", "templates")
    try:
        found.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise TemplateError(f"{found}: cannot be made: {error.strerror}; set XDG_DATA_HOME") from None
    return found


def check_name(name: str) -> None:
    """Raise TemplateError unless `name` can name a template."""
    if not NAME.fullmatch(name):
        raise TemplateError(
            f"{name!r} cannot name a template; use small letters, digits, - and _, starting with a letter or digit, "
            "at most 40"
        )


def find(name: str) -> Template:
    """Return the template `name`. Raises TemplateError."""
    check_name(name)
    path = folder() / name / FILE
    try:
        plain = msgpack.unpackb(path.read_bytes())
    except FileNotFoundError:
        names = ", ".join(_names()) or "none yet; make one with `hostd template GUEST NAME`"
        raise TemplateError(f"there is no template {name!r}; there are {names}") from None
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, msgpack.UnpackException):
        plain = None
    expected = {field.name for field in fields(Template)} - {"name"} | {"form"}
    if not isinstance(plain, dict) or plain.get("form") != FORM or plain.keys() != expected:
        raise TemplateError(f"{path}: is damaged or of another version of hostd; make the template {name!r} again")
    del plain["form"]
    return Template(name=name, **plain)


def listing() -> list[Template]:
    """Return all templates in the order of their names; those that can't be read are left out."""
    found = []
    for name in _names():
        with contextlib.suppress(TemplateError):
            found.append(find(name))
    return found


def remove(name: str) -> None:
    """Remove the template `name`; guests made from it go on. Raises TemplateError."""
    check_name(name)
    there = folder()
    with locked(there):
        try:
            shutil.rmtree(there / name)
        except FileNotFoundError:
            raise TemplateError(f"there is no template {name!r}; `hostd templates` lists those there are") from None
        except OSError as error:
            raise TemplateError(f"{there / name}: cannot be removed: {error.strerror}") from None


@contextlib.contextmanager
def new_folder(name: str, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder that becomes the template `name` at the end, or nothing if anything fails.

    Raises TemplateError: there is one already, and it is not to be replaced.
    """
    check_name(name)
    there = folder()
    with locked(there):
        if (there / name).exists() and not replace:
            raise TemplateError(
                f"there is a template {name!r} already; remove it with `hostd templates rm {name}`, or add --replace"
            )
        with appearing(there / name) as made:
            made.mkdir(mode=0o700)
            yield made
            shutil.rmtree(there / name, ignore_errors=True)


def write(made: Path, template: Template) -> None:
    """Write what a template says of itself into its new folder."""
    plain = asdict(template)
    del plain["name"]
    (made / FILE).write_bytes(msgpack.packb(plain | {"form": FORM}))


def processor() -> str:
    """Return what this host's processor calls itself."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def _names() -> list[str]:
    return sorted(path.parent.name for path in folder().glob(f"*/{FILE}") if NAME.fullmatch(path.parent.name))
