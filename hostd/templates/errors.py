"""What can go wrong with templates: each one sentence that says what to do."""

from __future__ import annotations


class TemplateError(Exception):
    """A template can't be had, made or used."""
