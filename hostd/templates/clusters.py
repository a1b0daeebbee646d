"""A cluster of nothing but guests from one template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostd.cluster.file import from_tables
from hostd.cluster.model import Cluster
from hostd.cluster.overrides import apply_overrides
from hostd.templates.store import Template

KEPT = ("regions", "channels", "networks", "network", "restart", "log_limit")
"""keys of the guest that its clones keep; what is frozen comes with the template anyway"""


def cluster_of(template: Template, count: int | None = None, overrides: Sequence[str] = ()) -> Cluster:
    """Return a cluster of one guest from `template`, or of `count`, with what it used in its own cluster.

    The cluster has the template's name. Raises ClusterFileError.
    """
    guest: dict[str, Any] = {"template": template.name}
    guest |= {key: template.table[key] for key in KEPT if key in template.table}
    if count is not None:
        guest["count"] = count
    tables = {"cluster": {"name": template.name}, **template.tables, "guest": {template.name: guest}}
    apply_overrides(tables, overrides)
    return from_tables(Path(template.file), tables, overrides)
