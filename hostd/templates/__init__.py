"""Templates: guests frozen into files, from which any number of guests go on (docs/templates.md)."""

from __future__ import annotations

from hostd.templates.errors import TemplateError
from hostd.templates.store import Template, find, listing, remove

__all__ = ["Template", "TemplateError", "find", "listing", "remove"]
