"""The command `hostd`: one file per command in this folder, imported when it is called."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": "run a cluster in the foreground and show its result",
    "up": "bring a cluster up in the background",
    "down": "end a background cluster and remove all it made",
    "ps": "list clusters and their guests",
    "logs": "show what guests wrote to their consoles",
    "exec": "run a command in a Linux guest",
    "cp": "copy files and folders between this host and Linux guests",
    "console": "join this terminal to a guest's console",
    "start": "start guests again that have ended",
    "stop": "stop guests for good",
    "kill": "kill the processes of guests",
    "net": "list and show networks, and let other programs join them",
    "capture": "show or write the frames of a network",
    "template": "freeze a guest into files that others go on from",
    "templates": "list and remove templates",
    "balloon": "show what a Linux guest has given back of its memory, or take more of it",
    "stats": "show what KVM and the host count of a guest",
    "plug": "give a running unikernel memory or a picture, or list what it was given",
    "attach": "let a running unikernel share a region",
    "unplug": "take away from a unikernel what it was given while it runs",
    "detach": "take a region away that was attached",
    "slots": "show a guest's slot table and what of it is shared",
    "pageout": "send a guest's memory to swap or to its file, while it runs",
    "screenshot": "write what a guest shows as a PNG file",
    "view": "show what a guest shows in a browser, as it changes",
    "gdb": "attach gdb to a guest, with its symbols",
    "mem": "read, write and search a guest's memory while it runs",
    "inspect": "show everything known of a cluster or a guest",
    "validate": "check a cluster file and its images without starting anything",
    "image": "make, list and remove kernels, initramfs archives and root file systems",
    "build": "compile a C program into a unikernel",
    "lab": "run a command in a throw-away machine with a full KVM",
    "bench": "measure guests beside what else there is",
    "density": "measure how many guests fit, and what each more costs",
    "doctor": "tell what this host can run, and what to do about the rest",
    "completion": "print shell completion for bash, zsh or tcsh",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: this process's); return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # The reader of our output has gone, as in `hostd --help | head -1`.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        from hostd.cli.command import run_command

        return run_command(arguments[0], arguments[1:])
    return _overview(arguments)


def _overview(arguments: list[str]) -> int:
    """Serve --help, --version and what is no command, without importing anything."""
    import hostd

    if arguments == ["--version"]:
        print(f"hostd {hostd.__version__}")
        return 0
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if not arguments:
        print(_help(), file=sys.stderr)
    else:
        print(f"hostd: {arguments[0]!r} is no command; `hostd --help` lists them", file=sys.stderr)
    return 2


def _help() -> str:
    commands = "\n".join(f"  {name:<12}{summary}" for name, summary in COMMANDS.items())
    return f"""usage: hostd COMMAND [ARGUMENTS]

Clusters of real virtual machines on one Linux host that talk through memory.

{commands}

options:
  -h, --help  this help; `hostd COMMAND --help` for a command's own
  --version   print the version

examples:
  hostd doctor
  hostd run examples/pingpong.toml
  hostd up examples/many.toml --set guest.hello.count=8
  hostd slots hello-3

Every command but completion takes --json."""
