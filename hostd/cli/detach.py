"""hostd detach"""

from __future__ import annotations

import argparse

from hostd.cli import unplug

EXAMPLES = ("hostd detach grower board", "hostd detach grower board --force --json")


def configure(parser: argparse.ArgumentParser) -> None:
    unplug.configure(parser, "REGION")


run = unplug.run
