"""Which cluster `hostd run` and `hostd up` mean: a file's, or one of guests from a template."""

from __future__ import annotations

import argparse

from hostd.cli.command import add_file
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Cluster


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add FILE, --set, --from and --count."""
    add_file(parser, optional=True)
    parser.add_argument(
        "--from", metavar="TEMPLATE", dest="template", help="guests from this template, instead of a file"
    )
    parser.add_argument("--count", type=int, metavar="N", help="of guests from the template (default: one)")


def chosen(options: argparse.Namespace) -> Cluster:
    """Return the cluster that the command line means. Raises ClusterFileError, TemplateError."""
    if (options.file is None) == (options.template is None):
        raise ClusterFileError("give a cluster file or --from TEMPLATE" + (", not both" if options.file else ""))
    if options.template is None:
        from hostd.cluster.file import load

        if options.count is not None:
            raise ClusterFileError(
                "--count goes with --from; in a file it is guest.NAME.count, or --set guest.NAME.count=N"
            )
        return load(options.file, options.overrides)
    from hostd.templates import find
    from hostd.templates.clusters import cluster_of

    return cluster_of(find(options.template), options.count, options.overrides)
