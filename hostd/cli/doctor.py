"""hostd doctor"""

from __future__ import annotations

import argparse
import sys

from hostd.cli.command import FAILED, print_json

EXAMPLES = ("hostd doctor", "hostd doctor --json")
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def configure(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    from hostd.doctor import run_checks

    checks = run_checks()
    healthy = all(check.status != "fail" for check in checks)
    if options.json:
        print_json({"ok": healthy, "checks": [check.describe() for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            hint = f"; {check.hint}" if check.hint else ""
            print(f"{_mark(check.status)}  {check.name.ljust(width)}  {check.text}{hint}")
    return 0 if healthy else FAILED


def _mark(status: str) -> str:
    mark = MARKS[status]
    return f"\x1b[{COLOURS[status]}m{mark}\x1b[0m" if sys.stdout.isatty() else mark
