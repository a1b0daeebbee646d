"""hostd completion"""

from __future__ import annotations

import argparse

from hostd.cli import command

EXAMPLES = (
    "hostd completion bash > ~/.local/share/bash-completion/completions/hostd",
    "hostd completion zsh > ~/.zfunc/_hostd",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def run(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(command.whole_parser(), shell=options.shell))
    return 0
