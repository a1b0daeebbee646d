"""hostd stats"""

from __future__ import annotations

import argparse

from hostd.cli.command import print_columns, print_json

EXAMPLES = ("hostd stats pingpong/ping", "hostd stats ping --watch 2", "hostd stats ping --dirty 1 --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--watch", type=_period, nargs="?", const=1.0, metavar="SECONDS", help="go on until Ctrl-C, with rates"
    )
    what.add_argument(
        "--dirty", type=_period, metavar="SECONDS", help="count the pages that it writes meanwhile, instead"
    )
    parser.add_argument("--all", action="store_true", help="what is zero, too")


def _period(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no time; give seconds, more than 0 and up to 3600")
    return seconds


def run(options: argparse.Namespace) -> int:
    from hostd.cli import stats_show
    from hostd.cli.targets import find_guest

    client, guest = find_guest(options.guest)
    with client:
        if options.dirty is not None:
            told = client.call("dirty", timeout=options.dirty + 90, guest=guest, seconds=options.dirty)
            if options.json:
                print_json(told)
            else:
                rows = [(name, pages, f"{pages / told['seconds']:,.0f}") for name, pages in told["pages"].items()]
                print_columns(("ROW", "PAGES WRITTEN", "PER SECOND"), rows, right=(1, 2))
        elif options.watch is not None:
            stats_show.watch(client, guest, options.watch, as_json=options.json, everything=options.all)
        else:
            told = client.call("statistics", guest=guest)
            if options.json:
                print_json(told)
            else:
                stats_show.show(told, everything=options.all)
    return 0
