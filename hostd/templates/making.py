"""Make a template of a guest that runs."""

from __future__ import annotations

import shutil
import time
from typing import Any, Protocol

from hostd.templates.store import IMAGE, MEMORY, Template, find, new_folder, processor, write


class Caller(Protocol):
    """A connection to a supervisor."""

    def call(self, name: str, *, timeout: float | None = ..., **arguments: Any) -> Any: ...


def make(client: Caller, guest: str, name: str, *, replace: bool = False) -> Template:
    """Freeze `guest` into the template `name`; it stands still meanwhile, then goes on.

    Raises TemplateError, ControlError, OSError.
    """
    with new_folder(name, replace=replace) as folder:
        told = client.call("freeze", timeout=None, guest=guest, path=str(folder / MEMORY))
        shutil.copyfile(told.pop("program"), folder / IMAGE)
        write(folder, Template(name=name, made=time.time(), processor=processor(), **told))
    return find(name)
