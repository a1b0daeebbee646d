"""What `make demo` runs: doctor, wordcount, pingpong, and the slot table of a guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hostd.doctor.probe import KvmKind, examine

EXAMPLES = Path(__file__).resolve().parent
HOSTD = str(Path(sys.executable).with_name("hostd"))
FEWER = [
    word
    for name in (("ping", "pong") if "HOSTD_LAB" in os.environ else ())
    for word in ("--set", f'guest.{name}.args=["{name}", "20000", "64", "spin"]')
]
"""a tenth of the messages where emulated CPUs wait for each other"""


def hostd(*arguments: str) -> None:
    """Run a hostd command with its output shown; end the demo if it fails."""
    print(f"\n$ hostd {' '.join(arguments)}", flush=True)
    code = subprocess.run([HOSTD, *arguments], cwd=EXAMPLES.parent, check=False).returncode
    if code:
        sys.exit(code)


def hostd_json(*arguments: str) -> Any:
    """Run a hostd command with --json and return what it printed."""
    print(f"\n$ hostd {' '.join(arguments)} --json", flush=True)
    done = subprocess.run(
        [HOSTD, *arguments, "--json"], cwd=EXAMPLES.parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stderr or done.stdout)
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def wordcount() -> None:
    """Nine guests count the words of a book; Python checks them."""
    run = hostd_json("run", "examples/wordcount.toml")
    total = run["guests"]["total"]["reports"]
    shares = [guest["reports"]["count_ns"] / 1e6 for name, guest in run["guests"].items() if name != "total"]
    print(
        f'{total["words"]} words, {total["distinct"]} different, most often "{total["top_1"]}" ({total["num_1"]}); '
        f"{run['check']['sentence']}\n"
        f"{len(shares)} guests mapped the book read-only and took {min(shares):.1f} to {max(shares):.1f} ms each for "
        f"their shares; {total['messages']} messages to the ninth; the whole run {run['seconds']:.2f} s"
    )


def pingpong() -> None:
    """Two guests bounce a message, beside two host processes that bounce a cache line."""
    run = hostd_json("run", "examples/pingpong.toml", *FEWER)
    guests = run["guests"]["ping"]["reports"]["rtt_ns_p50"]
    limit = run["baseline"]["host_rtt_ns_p50"]
    print(
        f"64-byte message, guest to guest and back: median {guests} ns; one cache line between two host processes and "
        f"back: {limit:.0f} ns; ratio {guests / limit:.2f}"
    )


def slots() -> None:
    """Eight guests of one image wait at a barrier: their slot tables show what they share."""
    hostd("up", "examples/many.toml", "--set", "guest.hello.count=8", "--set", "channel.everyone.lanes=9")
    try:
        hostd("ps")
        hostd("slots", "hello-3")
        print("image rows: their pages are the file's, shared by all; what a guest wrote is private to it")
    finally:
        hostd("down", "many")


def go_to_the_lab() -> None:
    """Where this host can't run guests, become the same demo in the lab."""
    kind, seen = examine()
    if kind in (KvmKind.UNIKERNEL, KvmKind.FULL) or "HOSTD_LAB" in os.environ:
        return
    print(
        f"no KVM for guests here ({seen}); the demo goes on in the lab: hostd lab --cpus 2 -- python examples/demo.py",
        flush=True,
    )
    os.execv(HOSTD, [HOSTD, "lab", "--cpus", "2", "--", sys.executable, *sys.argv])


def main() -> None:
    """Run it all."""
    go_to_the_lab()
    hostd("doctor")
    wordcount()
    pingpong()
    slots()


if __name__ == "__main__":
    main()
