"""hostd logs"""

from __future__ import annotations

import argparse
import time

from hostd.cli.command import print_json

EXAMPLES = ("hostd logs many", "hostd logs many/hello-3", "hostd logs -f pong")
POLL = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="CLUSTER, CLUSTER/GUEST or GUEST")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the guests have ended")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="only the last N lines of each guest")


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find
    from hostd.supervisor.console import LogFollower
    from hostd.supervisor.directory import ClusterDirectory

    client, guests = find(options.target)
    with client:
        state = client.call("ps")
        names = guests or [guest["name"] for guest in state["guests"]]
        directory = ClusterDirectory(state["cluster"])
        followers = {name: LogFollower(directory.log(name)) for name in names}
        kept = {
            name: _last(follower.lines(last=not options.follow), options.lines) for name, follower in followers.items()
        }
        if options.json and not options.follow:
            print_json(kept)
            return 0
        prefixed = len(names) > 1
        for name, lines in kept.items():
            _show(name, lines, prefixed)
        while options.follow and followers:
            ended = _ended(client.call("ps"), followers)
            for name, follower in list(followers.items()):
                _show(name, follower.lines(last=name in ended), prefixed)
                if name in ended:
                    del followers[name]
            time.sleep(POLL)
    return 0


def _last(lines: list[str], count: int | None) -> list[str]:
    return lines if count is None else lines[max(0, len(lines) - count) :]


def _show(name: str, lines: list[str], prefixed: bool) -> None:
    for line in lines:
        print(f"{name} | {line}" if prefixed else line, flush=True)


def _ended(state: dict[str, list[dict[str, object]]], names: object) -> set[object]:
    return {guest["name"] for guest in state["guests"] if guest["state"] == "ended" and guest["pid"] is None}
