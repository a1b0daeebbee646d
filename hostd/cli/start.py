"""hostd start"""

from __future__ import annotations

import argparse

from hostd.cli import stop

EXAMPLES = ("hostd start many/hello-3", "hostd start many", "hostd stop hello-3 && hostd start hello-3")


def configure(parser: argparse.ArgumentParser) -> None:
    stop.add_targets(parser)


def run(options: argparse.Namespace) -> int:
    return stop.apply(options, "start", "started", nothing="nothing: no guest has ended")
