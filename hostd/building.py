"""Build the C extensions: each is declared in pyproject.toml with its cffi build script as the only source.

cffi's own setuptools hook (`cffi_modules`) can be given in a setup.py only; this is its pyproject form. As a program,
`python hostd/building.py [NAME...]` builds the named extensions (or all of them) in place.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension
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
        declared = [(list(extension.sources), list(extension.depends)) for extension in self.extensions]
        self.extensions[:] = [self._generated(extension) for extension in self.extensions]
        super().run()
        # What is packed afterwards is what was declared: the generated sources have absolute paths.
        for extension, (sources, depends) in zip(self.extensions, declared, strict=True):
            extension.sources, extension.depends = sources, depends

    def _generated(self, extension: Extension) -> Extension:
        [script] = extension.sources
        generated = load_builder(script).distutils_extension(self.build_temp, verbose=False)
        assert generated.name == extension.name, f"{script} builds {generated.name}, not {extension.name}"
        # setuptools keeps attributes of its own on the declared extension (full name, whether it is in place).
        extension.__dict__.update({k: v for k, v in generated.__dict__.items() if not k.startswith("_")})
        return extension


def main(names: list[str]) -> None:
    """Build the named extensions (all, if none is named) in place, beside their build scripts."""
    os.chdir(Path(__file__).resolve().parent.parent)
    distribution = Distribution({"script_name": "building.py"})
    distribution.parse_config_files()
    distribution.ext_modules = [e for e in distribution.ext_modules or [] if not names or e.name in names]
    with tempfile.TemporaryDirectory() as temporary:
        command = distribution.get_command_obj("build_ext")
        command.inplace, command.build_temp = True, temporary
        distribution.run_command("build_ext")


if __name__ == "__main__":
    main(sys.argv[1:])
