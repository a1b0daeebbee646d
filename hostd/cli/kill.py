"""hostd kill"""

from __future__ import annotations

import argparse

from hostd.cli import stop

EXAMPLES = ("hostd kill many/hello-3", "hostd kill hello-3 hello-4")


def configure(parser: argparse.ArgumentParser) -> None:
    stop.add_targets(parser)


def run(options: argparse.Namespace) -> int:
    return stop.apply(options, "kill", "killed")
