"""What only benchmarks need from PyPI: hostd is installed without it, `hostd[bench]` with it."""

from __future__ import annotations

import importlib
from types import ModuleType

from hostd.bench import BenchError


def need(module: str, what_for: str) -> ModuleType:
    """Return the module of the extra `bench`. Raises BenchError with what to do where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.split(".", maxsplit=1)[0]
        raise BenchError(f"{what_for} needs {name}, which is not installed: pip install 'hostd[bench]'") from None
