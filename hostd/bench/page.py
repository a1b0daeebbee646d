"""A report as one HTML page that needs nothing but itself (page.html is its template)."""

from __future__ import annotations

import base64
from pathlib import Path

from hostd.bench.compare import Comparison
from hostd.bench.extra import need
from hostd.bench.plot import panels, vector
from hostd.bench.quantity import quantity
from hostd.bench.report import MOST_SPREAD, Ratio, Report

TEMPLATE = Path(__file__).with_name("page.html")


def check() -> None:
    """Raise BenchError where no page can be made."""
    need("jinja2", "writing a page")
    need("matplotlib", "drawing a page's charts")


def page(report: Report, comparison: Comparison | None = None) -> str:
    """Return the page of `report`, with what has changed since an earlier one. Raises BenchError."""
    check()
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text()).render(
        report=report,
        comparison=comparison,
        targets=[ratio for ratio in report.ratios if ratio.target is not None],
        charts=[(panel.title, base64.b64encode(vector(panel).encode()).decode()) for panel in panels(report)],
        most_spread=MOST_SPREAD,
        amount=quantity,
        verdict=verdict,
    )


def verdict(ratio: Ratio) -> str:
    """Return whether `ratio` meets its target, in a word."""
    return {True: "met", False: "missed", None: "unknown"}[ratio.holds]
