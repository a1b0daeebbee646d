"""The check of wordcount.toml: reads the run's result on standard input, counts the book in plain Python, compares.

Prints {"sentence": ...} for the run's JSON; exits with 1 where the guests and Python differ.
"""

from __future__ import annotations

import collections
import json
import re
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent / "data/war-and-peace.txt"
WORD_LIMIT = 31  # letters of a word that the guests look at


def checksum(counts: dict[str, int]) -> int:
    """Return the sum over all words of the word's FNV-1a hash times its count, as a signed 64-bit number."""
    total = 0
    for word, count in counts.items():
        value = 0xCBF29CE484222325
        for byte in word.encode():
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        total += value * count
    total &= 0xFFFFFFFFFFFFFFFF
    return total - (1 << 64) if total >> 63 else total


def expected() -> dict[str, int | str]:
    """Return what the totalling guest must report."""
    text = BOOK.read_text(encoding="utf-8").encode().decode("latin-1")
    words = collections.Counter(word.lower()[:WORD_LIMIT] for word in re.findall("[A-Za-z]+", text))
    reports: dict[str, int | str] = {
        "words": words.total(),
        "distinct": len(words),
        "checksum": checksum(words),
    }
    for number, (word, count) in enumerate(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:10], 1):
        reports |= {f"top_{number}": word, f"num_{number}": count}
    return reports


def main() -> int:
    """Compare; return the exit code."""
    reports = json.load(sys.stdin)["guests"]["total"]["reports"]
    wrong = [
        f"{key}: guests {reports.get(key)}, Python {value}"
        for key, value in expected().items()
        if reports.get(key) != value
    ]
    sentence = "differs from plain Python's count: " + "; ".join(wrong) if wrong else "equals plain Python's count"
    print(json.dumps({"sentence": sentence}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
