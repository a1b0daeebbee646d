"""What all commands share: parsers, --json, and errors as one sentence with an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from hostd.cli import COMMANDS

USAGE, FAILED = 2, 1


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run the command `name`; return its exit code. Whatever the user can mend is said in one sentence."""
    module = load(name)
    parser = argparse.ArgumentParser(prog=f"hostd {name}", **_description(name, module))
    configure(parser, name, module)
    options = parser.parse_args(arguments)
    try:
        code: int = module.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # The reader of our output has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except Exception as error:
        code_or_none = _exit_code(error)
        if code_or_none is None:
            raise
        _complain(f"hostd {name}", error, as_json=getattr(options, "json", False))
        return code_or_none


def load(name: str) -> ModuleType:
    """Return the module of the command `name`: it has `configure(parser)`, `run(options)` and EXAMPLES."""
    return importlib.import_module(f"hostd.cli.{name}")


def configure(parser: argparse.ArgumentParser, name: str, module: ModuleType) -> None:
    """Give `parser` the arguments of a command."""
    if name not in ("bench", "completion", "density", "lab"):
        parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    module.configure(parser)


def whole_parser() -> argparse.ArgumentParser:
    """Return a parser with every command, for shell completion."""
    parser = argparse.ArgumentParser(prog="hostd")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        module = load(name)
        configure(commands.add_parser(name, help=summary, **_description(name, module)), name, module)
    return parser


def _description(name: str, module: ModuleType) -> dict[str, Any]:
    examples = "".join(f"  {line}\n" for line in module.EXAMPLES)
    summary = COMMANDS[name]
    return {
        "description": f"{summary[0].upper()}{summary[1:]}.",
        "epilog": f"examples:\n{examples}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _exit_code(error: Exception) -> int | None:
    """Return the exit code for an error that is the user's or the host's; None for one of hostd's own."""
    # Imported here: a command that goes well needs none of them.
    from guestlib import BuildError
    from hostd.agent.link import AgentError
    from hostd.bench import BenchError
    from hostd.boot.errors import ImageError
    from hostd.cluster.errors import ClusterFileError
    from hostd.control.client import ControlError
    from hostd.images import ImageStoreError
    from hostd.lab import LabError
    from hostd.supervisor.errors import SupervisorError
    from hostd.templates import TemplateError
    from net.errors import NetError
    from shm import ShmError

    if isinstance(error, ClusterFileError | ImageError | BuildError):
        return USAGE
    signal = getattr(error, "signal", None)
    if isinstance(error, SupervisorError) and isinstance(signal, int):
        return 128 + signal
    return (
        FAILED
        if isinstance(
            error,
            AgentError
            | BenchError
            | ImageStoreError
            | LabError
            | SupervisorError
            | ControlError
            | NetError
            | ShmError
            | TemplateError
            | OSError,
        )
        else None
    )


def _complain(command: str, error: Exception, *, as_json: bool) -> None:
    from hostd.supervisor.errors import sentence

    text = sentence(error)
    print(f"{command}: {text}", file=sys.stderr)
    if as_json:
        print_json({"ok": False, "error": text})


def add_file(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add FILE and --set, as `run`, `up` and `validate` take them."""
    file = parser.add_argument("file", metavar="FILE", nargs="?" if optional else None, help="cluster file (TOML)")
    file.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the file, such as guest.hello.count=200; may be repeated",
    )


def print_json(value: object) -> None:
    """Print `value` as JSON, with bytes as hex."""
    print(json.dumps(value, indent=2, default=lambda data: bytes(data).hex()))


def print_columns(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> None:
    """Print `rows` under `head` in aligned columns; those numbered in `right` are aligned right."""
    texts = [list(head), *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    to_right = set(right)
    for row in texts:
        cells = (
            cell.rjust(width) if column in to_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
