"""What a density sweep found, as a report: figures at the last step and their targets, and what every step gave."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from hostd.bench.density_cluster import Kind
from hostd.bench.density_memory import MEASURES
from hostd.bench.report import Better, Figure, Report, Series

TARGET_GUESTS = 1000
PER_GUEST, RATE, IDLE, END = 2.5 * (1 << 20), 80.0, 0.05, 20.0
"""targets for so many unikernels that share their image: bytes, guests a second, part of a core, seconds"""
MODE_TEXTS = {
    "shared": "image mapped MAP_PRIVATE from one file, as hostd does",
    "copied": "each guest has a copy of the image",
    "ksm": "each guest has a copy of the image, and the kernel merges equal pages (KSM)",
}

Found = Mapping[str, Sequence[float]]
"""the values of each round by "MODE COUNT FIGURE" """


def write(
    report: Report,
    found: Found,
    sharing: Mapping[str, Sequence[float]],
    modes: Sequence[str],
    options: argparse.Namespace,
    kind: Kind,
) -> None:
    """Add all to `report`."""
    for mode in modes:
        counts = complete(found, mode, options.rounds)
        if not counts:
            continue
        _figures(report, found, mode, counts, options)
        _series(report, found, mode, counts)
        if mode in sharing:
            report.series.append(
                Series(
                    chart="pages of the image still shared",
                    line=mode,
                    x_label="page of the image",
                    y_label="part of the guests that have it in common",
                    x=tuple(range(len(sharing[mode]))),
                    y=tuple(sharing[mode]),
                )
            )
            _note_sharing(report, mode, counts[-1], sharing[mode])
    _compare_modes(report, modes)
    if kind.talks and "shared" in modes:
        _targets(report, found, complete(found, "shared", options.rounds))
    _bounds(report, found, modes, options)


def complete(found: Found, mode: str, rounds: int) -> list[int]:
    """Return the numbers of guests that every round has measured in `mode`."""
    counts = {int(key.split()[1]) for key, values in found.items() if key.split()[0] == mode and len(values) == rounds}
    return sorted(count for count in counts if len(found.get(f"{mode} {count} available", ())) == rounds)


def _figures(report: Report, found: Found, mode: str, counts: Sequence[int], options: argparse.Namespace) -> None:
    top, text = counts[-1], MODE_TEXTS[mode]
    baseline = mode != "shared"
    what = f"{top} guests at rest, {text}"
    for measure, how in MEASURES.items():
        values = found.get(f"{mode} {top} {measure}")
        if values is None:
            continue
        each = [value / top for value in values]
        report.add(f"{mode}_{measure}", each, "bytes", f"{how}; {what}; divided by {top}", baseline=baseline)
        if len(counts) > 1:
            before = counts[-2]
            slope = [
                (last - first) / (top - before)
                for last, first in zip(values, found[f"{mode} {before} {measure}"], strict=True)
            ]
            more = f"{how}; from {before} to {top} guests at rest, {text}, per guest"
            report.add(f"{mode}_{measure}_more", slope, "bytes", more, baseline=baseline)
    for name, unit, how in _others(what, text, top, options):
        found_here = found.get(f"{mode} {top} {name}", ())
        if len(found_here) == options.rounds:
            rounds = [value / top if name == "kernel" else value for value in found_here]
            better: Better = "higher" if name in ("rate", "messages") else "lower"
            report.add(f"{mode}_{name}", rounds, unit, how, better=better, baseline=baseline)


def _others(what: str, text: str, top: int, options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Return name, unit and manner of what is measured beside memory."""
    return [
        ("kernel", "bytes", f"the kernel's part of the control group; {what}; divided by {top}"),
        (
            "rate",
            "guests/s",
            "the guests of the last step, from the first request until every one of them has said on a channel (Linux: "
            f"on its console) that it runs; {text}",
        ),
        (
            "idle",
            "cores",
            f"processor time of {what}, and of their warm parent, by their CPU-time clocks, over {options.idle:g} s",
        ),
        (
            "messages",
            "messages/s",
            f"{top} guests, all on one mpsc channel, to one Python process that checks each; from the word that they "
            "shall until the last one is there",
        ),
        ("end", "s", f"from the word that they shall end until the processes of all {top} guests are gone"),
        ("merging", "s", f"processor time of ksmd until {what} have nothing left to merge"),
    ]


def _series(report: Report, found: Found, mode: str, counts: Sequence[int]) -> None:
    guests = tuple(float(count) for count in counts)

    def middle(count: int, name: str) -> float:
        values = sorted(found[f"{mode} {count} {name}"])
        return values[len(values) // 2]

    def line(chart: str, name: str, label: str, x: Sequence[float], y: Sequence[float], *, log: bool = False) -> None:
        report.series.append(
            Series(chart=chart, line=name, x_label="guests", y_label=label, x=tuple(x), y=tuple(y), log=log)
        )

    for measure in MEASURES:
        if f"{mode} {counts[-1]} {measure}" not in found:
            continue
        memory = [middle(count, measure) for count in counts]
        # A logarithmic axis has no place for what noise makes negative.
        line("memory of all guests", f"{mode}, {measure}", "bytes", guests, memory, log=min(memory) > 0)
        more = [(b - a) / (y - x) for a, b, x, y in zip(memory, memory[1:], counts, counts[1:], strict=False)]
        line("marginal cost per guest", f"{mode}, {measure}", "bytes a guest", guests[1:], more)
    for name, chart, label in (
        ("rate", "start rate", "guests a second"),
        ("idle", "processor time of all guests, idle", "cores"),
    ):
        line(chart, mode, label, guests, [middle(count, name) for count in counts])


def _targets(report: Report, found: Found, counts: Sequence[int]) -> None:
    if not counts or counts[-1] < TARGET_GUESTS:
        report.notes.append(f"The targets are for {TARGET_GUESTS:,} guests at once, so nothing was held against them.")
        return

    def limit(name: str, value: float, unit: str, of: Figure) -> Figure:
        how = "a target, not measured"
        return report.add(name, [value] * len(of.rounds), unit, how, baseline=True)

    most = None
    for measure in MEASURES:
        figure = _named(report, f"shared_{measure}")
        if figure is not None:
            most = most or limit("target_memory", PER_GUEST, "bytes", figure)
            report.compare(f"memory by {measure}/target", figure, most, at_most=1.0)
    for name, value, unit, least in (
        ("rate", RATE, "guests/s", True),
        ("idle", IDLE, "cores", False),
        ("end", END, "s", False),
    ):
        figure = _named(report, f"shared_{name}")
        if figure is None:
            continue
        target = limit(f"target_{name}", value, unit, figure)
        if least:
            report.compare(f"{name}/target", figure, target, at_least=1.0)
        else:
            report.compare(f"{name}/target", figure, target, at_most=1.0)


def _compare_modes(report: Report, modes: Sequence[str]) -> None:
    """Hold what a further guest costs against what it costs with an image of its own."""
    for mode in modes:
        for measure in MEASURES:
            ours, theirs = _named(report, f"shared_{measure}_more"), _named(report, f"{mode}_{measure}_more")
            if mode != "shared" and ours is not None and theirs is not None:
                report.compare(f"a further guest by {measure}, shared/{mode}", ours, theirs)


def _named(report: Report, name: str) -> Figure | None:
    return next((figure for figure in report.figures if figure.name == name), None)


def _note_sharing(report: Report, mode: str, top: int, shares: Sequence[float]) -> None:
    if not shares:
        return
    whole, own = sum(share >= 1.0 for share in shares), sum(share == 0.0 for share in shares)
    rest = [share for share in shares if 0.0 < share < 1.0]
    some = f", and {len(rest)} in some {sum(rest) / len(rest):.0%} of them" if rest else ""
    report.notes.append(
        f"{mode}: of {len(shares)} pages of the image, {own} are each guest's own, {whole} are one and the same in all "
        f"{top} guests{some}."
    )


def _bounds(report: Report, found: Found, modes: Sequence[str], options: argparse.Namespace) -> None:
    if options.kernel is None:
        report.notes.append(
            f"Each guest's image has a table of {options.image_size} beside its program: it reads all of it and writes "
            f"{options.write} of its pages, which are its own from then on in every mode."
        )
    kernel = _named(report, f"{modes[0]}_kernel")
    if kernel is not None and kernel.value is not None:
        report.notes.append(
            f"Of a guest's memory, {kernel.value / (1 << 20):.2f} MiB are the kernel's: KVM's structures and the pages "
            "it takes ahead for its page tables, threads' stacks, page tables, mappings, descriptors."
        )
