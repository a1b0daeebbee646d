"""A report as charts: what was varied, every figure with its rounds, every ratio with its target. Drawn by matplotlib.

`panels` says what there is to draw; `picture` puts all of it in one file, `vector` gives one chart as SVG.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostd.bench import BenchError
from hostd.bench.extra import need
from hostd.bench.quantity import is_binary, short
from hostd.bench.report import Figure, Ratio, Report, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

FORMATS = (".png", ".svg", ".pdf")
LINES, ROWS = 8, 36
"""lines in a chart, and rows in a list of dots, that a reader can still tell apart; more become several charts"""
WIDTH, HEIGHT, ROW, HEAD = 7.2, 4.4, 0.22, 1.1
"""of a chart, in inches: width, height, a row of dots, what is above and below the rows"""
DOTS_PER_INCH, COLUMNS = 100, 2
LARGEST = 60_000
"""dots: matplotlib draws no picture higher than 65536"""
WIDE, TWO_DECADES, FEW = 20.0, 100.0, 12
"""how many times apart rounds get a logarithmic axis; span and number of values up to which one has room for numbers"""
OURS, THEIRS, MET, MISSED, PLAIN = "#1f5fa8", "#8a8a8a", "#1e8449", "#c0392b", "#444444"
COLOURS = ("#1f5fa8", "#c0392b", "#1e8449", "#b9770e", "#7d3c98", "#148f9e", "#d16ba5", "#444444")
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # Text stays text: small, and can be searched.
}


@dataclass(frozen=True)
class Panel:
    """One chart that is yet to be drawn, `height` inches high."""

    title: str
    height: float
    draw: Callable[[Axes], None]


def check() -> None:
    """Raise BenchError where nothing can be drawn."""
    need("matplotlib", "drawing charts")


def panels(report: Report) -> list[Panel]:
    """Return the charts of `report`: its series, its ratios, its figures."""
    return [*_charts(report.series), *_ratios(report.ratios), *_figures(report.figures)]


def picture(report: Report, path: Path) -> None:
    """Write all charts of `report` into one picture at `path`, whose ending (FORMATS) says its kind.

    Raises BenchError: nothing to draw, or no matplotlib; OSError.
    """
    found = panels(report)
    if not found:
        raise BenchError(f"{path}: the report has nothing to draw")
    with _styled() as drawing:
        rows = [found[at : at + COLUMNS] for at in range(0, len(found), COLUMNS)]
        heights = [max(panel.height for panel in row) for row in rows]
        columns = min(COLUMNS, len(found))
        drawn = drawing(figsize=(WIDTH * columns, sum(heights) + 0.4), layout="constrained")
        drawn.suptitle(report.command or f"hostd bench {report.bench}")
        parts = drawn.subfigures(len(rows), columns, squeeze=False, height_ratios=heights)
        for number, panel in enumerate(found):
            _draw(panel, parts[number // columns, number % columns].add_subplot())
        dots = min(DOTS_PER_INCH, LARGEST / drawn.get_figheight())
        drawn.savefig(path, format=path.suffix.removeprefix("."), dpi=dots)


def vector(panel: Panel) -> str:
    """Return `panel` as an SVG document. Raises BenchError: no matplotlib."""
    with _styled() as drawing:
        drawn = drawing(figsize=(WIDTH, panel.height), layout="constrained")
        _draw(panel, drawn.add_subplot())
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()


@contextlib.contextmanager
def _styled() -> Iterator[type[Drawing]]:
    """Give matplotlib's Figure, with the style of these charts; no window system is ever asked."""
    check()
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(STYLE):
        yield Drawing


def _draw(panel: Panel, axes: Axes) -> None:
    axes.set_title(panel.title, loc="left")
    panel.draw(axes)


def _cut(title: str, things: Sequence[Any], most: int) -> Iterator[tuple[str, Sequence[Any]]]:
    """Cut `things` into parts of about the same length, at most `most`, each with a title."""
    parts = -(-len(things) // most)
    for part in range(parts):
        begin, end = len(things) * part // parts, len(things) * (part + 1) // parts
        yield (f"{title} ({part + 1} of {parts})" if parts > 1 else title), things[begin:end]


# --- what was varied ---


def _charts(series: Sequence[Series]) -> list[Panel]:
    names = dict.fromkeys(one.chart for one in series)
    found = []
    for name in names:
        lines = [one for one in series if one.chart == name and one.x]
        found += [Panel(title, HEIGHT, _lines(part, lines)) for title, part in _cut(name, lines, LINES)]
    return found


def _lines(part: Sequence[Series], chart: Sequence[Series]) -> Callable[[Axes], None]:
    """Draw `part` of the lines of a chart, on the axes that the whole chart needs."""

    def draw(axes: Axes) -> None:
        log = any(one.log for one in chart)
        for number, one in enumerate(part):
            points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if not log or (x > 0 and y > 0)]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=COLOURS[number % len(COLOURS)],
                marker="o" if len(points) <= 40 else None,
                markersize=3.5,
                linewidth=1.4,
                label=one.line,
            )
        _scale(axes.xaxis, [x for one in chart for x in one.x], part[0].x_label, log=log, varied=True)
        _scale(axes.yaxis, [y for one in chart for y in one.y], part[0].y_label, log=log)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return draw


# --- axes ---


def _scale(axis: Axis, values: Sequence[float], label: str, *, log: bool, varied: bool = False) -> None:
    """Have `axis` show what `values` span, from zero where it is linear, with numbers in the words of `label`.

    With `varied` its numbers are the values themselves, if they are few.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

    axes, binary = axis.axes, is_binary(label)
    assert axes is not None
    is_x = axis is axes.xaxis
    limit, set_scale = (axes.set_xlim, axes.set_xscale) if is_x else (axes.set_ylim, axes.set_yscale)
    seen = [value for value in values if not log or value > 0]
    if not seen:
        return
    low, high = min(seen), max(seen)
    if log:
        room = max(high / low, 1.1) ** 0.05
        set_scale("log", base=2 if binary else 10)
        limit(low / room, high * room)
        if varied and len(set(seen)) <= FEW:
            axis.set_ticks(sorted(set(seen)))
        elif not binary and high / low < TWO_DECADES:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    else:
        low = min(low, 0.0)
        room = 0.05 * ((high - low) or 1.0)
        limit(low - (room if low < 0 else 0.0), high + room)
        if binary and high - low >= 8:
            axis.set_major_locator(MultipleLocator(2.0 ** max(0, math.ceil(math.log2((high - low) / 6)))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value, label)))
    axis.set_label_text("time" if label in ("ns", "s") else label)


# --- rounds ---


def _figures(figures: Sequence[Figure]) -> list[Panel]:
    units = dict.fromkeys(figure.unit for figure in figures)
    found = []
    for unit in units:
        title = f"figures in {unit}: each round, and the median"
        for part_title, part in _cut(title, [figure for figure in figures if figure.unit == unit], ROWS):
            found.append(Panel(part_title, HEAD + ROW * max(len(part), 4), _dots(part, unit, _colour_of_figure)))
    return found


def _ratios(ratios: Sequence[Ratio]) -> list[Panel]:
    title = "ratios: each round, the median, and the target (|)"
    return [
        Panel(part_title, HEAD + ROW * max(len(part), 4), _dots(part, "ratio", _colour_of_ratio))
        for part_title, part in _cut(title, ratios, ROWS)
    ]


def _colour_of_figure(figure: Figure) -> str:
    return THEIRS if figure.baseline else OURS


def _colour_of_ratio(ratio: Ratio) -> str:
    return PLAIN if ratio.holds is None else MET if ratio.holds else MISSED


def _dots(rows: Sequence[Any], unit: str, colour_of: Callable[[Any], str]) -> Callable[[Axes], None]:
    """Draw a row for each of `rows`: small dots for the rounds, a large one for the median, hollow if it is refused."""

    def draw(axes: Axes) -> None:
        values = [value for row in rows for value in row.rounds]
        values += [row.target for row in rows if isinstance(row, Ratio) and row.target is not None]
        log = min(values) > 0 and max(values) / min(values) > WIDE
        for at, row in enumerate(rows):
            colour = colour_of(row)
            axes.plot(row.rounds, [at] * len(row.rounds), "o", color=colour, alpha=0.35, markersize=3.5, linewidth=0)
            face = "white" if row.refused else colour
            axes.plot([row.median], [at], "o", color=colour, markerfacecolor=face, markersize=6.5)
            if isinstance(row, Ratio) and row.target is not None:
                axes.plot([row.target], [at], "|", color="black", markersize=12, markeredgewidth=1.6)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _scale(axes.xaxis, values, unit, log=log)

    return draw
