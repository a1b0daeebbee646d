"""Build the C extensions: each is declared in pyproject.toml with its cffi build script as the only source.

cffi's own setuptools hook (`cffi_modules`) can be given in a setup.py only; this is its pyproject form. As a program,
`python hostd/building.py [NAME...]` builds the named extensions (or all of them) in place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext


def load_builder(script: str) -> Any:
    """Return the `ffibuilder` that the build script at path `script` defines."""
    spec = importlib.util.spec_from_file_location("cffi_build_script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffibuilder


class BuildExt(build_ext):
    """`build_ext` that turns a cffi build script into the C extension it describes."""

    def run(self) -> None:
        # In place: the command keeps a reference to this very list.
        self.extensions[:] = [self._generated(extension) for extension in self.extensions]
        super().run()

    def _generated(self, extension: Extension) -> Extension:
        [script] = extension.sources
        generated = load_builder(script).distutils_extension(self.build_temp, verbose=False)
        assert generated.name == extension.name, f"{script} builds {generated.name}, not {extension.name}"
        # setuptools keeps attributes of its own on the declared extension (full name, whether it is in place).
        extension.__dict__.update({k: v for k, v in generated.__dict__.items() if not k.startswith("_")})
        return extension


def main(names: list[str]) -> None:
    """Build the named extensions in place, beside their build scripts."""
    root = Path(__file__).resolve().parent.parent
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
        # Elsewhere, because cffi would take the project's own pyproject.toml for a description of this one extension.
        for extension in declared:
            if not names or extension["name"] in names:
                load_builder(str(root / extension["sources"][0])).compile(tmpdir=str(root), verbose=False)


if __name__ == "__main__":
    main(sys.argv[1:])
