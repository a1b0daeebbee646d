"""What a guest boots: what its process is told of it, and the files that it maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hostd.boot.elf import Image
from hostd.templates import Template, TemplateError
from hostd.templates.store import processor


@dataclass(frozen=True)
class Boot:
    """What one group of guests boots.

    `description` is the "image" of a guest's spec, as plain values. `files` are opened for each guest's process in this
    order, the kernel or program first, each with its access ("ro" or "rw").
    """

    description: Mapping[str, Any]
    files: tuple[tuple[str, str], ...]
    template: Mapping[str, Any] | None = None
    """{"rows", "state"} of the template that its guests go on from, whose memory is the last of `files`"""

    @property
    def path(self) -> str:
        """The file that holds the program or kernel."""
        return self.files[0][0]

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, for a file; `Boot.of` takes them back."""
        return {"description": self.description, "files": self.files, "template": self.template}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Boot:
        files = tuple((path, access) for path, access in plain["files"])
        return cls(plain["description"], files, plain.get("template"))


def unikernel(image: Image) -> Boot:
    """Return what a unikernel guest boots: its program."""
    return Boot(image.describe(), ((image.path, "ro"),))


def frozen(template: Template) -> Boot:
    """Return what a guest goes on from: a template. Raises TemplateError when it is not for this host."""
    if template.processor != processor():
        raise TemplateError(
            f"template {template.name!r} was made on {template.processor}, this host has {processor()}; "
            "make it again here"
        )
    files = [(str(template.image_file), "ro"), *((path, access) for path, access in template.files)]
    files.append((str(template.memory_file), "ro"))
    return Boot(template.image, tuple(files), {"rows": template.rows, "state": template.state})
